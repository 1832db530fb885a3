package tdx

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/go-tdx-guest/pcs"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/internal/judge"
)

// judgement is what Intel thinks of the versions that run.
type judgement struct {
	platform, module, qe pcs.TcbComponentStatus
	advisories           []string
}

// intel looks the quote up in Intel's word: is the collateral the platform's own, is this Intel's TDX module and quoting
// enclave, and which status have they ("TCB Info" and "Enclave Identity" in Intel's PCS API, version 4).
//
// The library answers for one of platform and module only: the module's status, where the module is of a version above
// 0, and drops the platform's. Here both count.
func (c *collateral) intel(q *quote) (judgement, *attestation.Rejected) {
	if _, r := judge.First(
		func() *attestation.Rejected { return name("FMSPC", c.tcbInfo.Fmspc, q.extensions.FMSPC) },
		func() *attestation.Rejected { return name("PCEID", c.tcbInfo.PceID, q.extensions.PCEID) },
		func() *attestation.Rejected { return c.isIntelsEnclave(q.qe) },
	); r != nil {
		return judgement{}, r
	}
	platform, r := c.platformLevel(q)
	if r != nil {
		return judgement{}, r
	}
	module, r := c.moduleLevel(q.td, platform)
	if r != nil {
		return judgement{}, r
	}
	qe, r := c.qeLevel(q.qe)
	if r != nil {
		return judgement{}, r
	}
	advisories := slices.Concat(platform.AdvisoryIDs, module.AdvisoryIDs, qe.AdvisoryIDs)
	slices.Sort(advisories)
	return judgement{platform.TcbStatus, module.TcbStatus, qe.TcbStatus, slices.Compact(advisories)}, nil
}

func name(field, want, got string) *attestation.Rejected {
	if strings.EqualFold(want, got) {
		return nil
	}
	return judge.Rejected(field, fmt.Sprintf("%q, as in the TCB info", want), fmt.Sprintf("%q in the PCK certificate", got))
}

func (c *collateral) isIntelsEnclave(qe enclaveReport) *attestation.Rejected {
	i := c.qeIdentity
	_, r := judge.First(
		func() *attestation.Rejected {
			return masked("QE_REPORT.MISCSELECT", i.Miscselect.Bytes, i.MiscselectMask.Bytes, qe.miscSelect)
		},
		func() *attestation.Rejected {
			return masked("QE_REPORT.ATTRIBUTES", i.Attributes.Bytes, i.AttributesMask.Bytes, qe.attributes)
		},
		func() *attestation.Rejected { return judge.Equal("QE_REPORT.MRSIGNER", i.Mrsigner.Bytes, qe.mrSigner) },
		func() *attestation.Rejected {
			return judge.Number("QE_REPORT.ISVPRODID", uint64(i.IsvProdID), uint64(qe.isvProdID))
		},
	)
	return r
}

// masked compares the bits that mask has set.
func masked(field string, want, mask, got []byte) *attestation.Rejected {
	if len(mask) != len(got) || len(want) != len(got) {
		return judge.Rejected(field, fmt.Sprintf("a value and a mask of %d bytes in Intel's word", len(got)),
			fmt.Sprintf("%d and %d bytes", len(want), len(mask)))
	}
	bits := make([]byte, len(got))
	for i := range got {
		bits[i] = got[i] & mask[i]
	}
	return judge.Equal(field, want, bits)
}

// platformLevel is the first level of the TCB info, which lists the best first, that the platform reaches in every
// component. Of the module's two components it counts only for modules of version 0: others have levels of their own.
func (c *collateral) platformLevel(q *quote) (pcs.TcbLevel, *attestation.Rejected) {
	ownLevels := 0
	if q.td.teeTCBSVN[1] > 0 {
		ownLevels = 2
	}
	for _, level := range c.tcbInfo.TcbLevels {
		if reaches(q.extensions.TCB.CPUSvnComponents, level.Tcb.SgxTcbcomponents, 0) &&
			q.extensions.TCB.PCESvn >= level.Tcb.Pcesvn &&
			reaches(q.td.teeTCBSVN, level.Tcb.TdxTcbcomponents, ownLevels) {
			return level, nil
		}
	}
	return pcs.TcbLevel{}, judge.Rejected("TCB.PLATFORM", "a level of Intel's TCB info",
		fmt.Sprintf("none: CPUSVN %x, PCESVN %d, TEE_TCB_SVN %x",
			q.extensions.TCB.CPUSvnComponents, q.extensions.TCB.PCESvn, q.td.teeTCBSVN))
}

func reaches(got []byte, want []pcs.TcbComponent, from int) bool {
	if len(got) != 16 || len(want) != 16 {
		return false
	}
	for i := from; i < len(got); i++ {
		if got[i] < want[i].Svn {
			return false
		}
	}
	return true
}

// moduleLevel checks the module's signer and attributes, and finds its level. TEE_TCB_SVN begins with the module's SVN
// and version; a module of version 0 was judged with the platform.
func (c *collateral) moduleLevel(td tdReport, platform pcs.TcbLevel) (pcs.TcbLevel, *attestation.Rejected) {
	svn, version := td.teeTCBSVN[0], td.teeTCBSVN[1]
	m := c.tcbInfo.TdxModule
	if r := isIntelsModule(td, m.Mrsigner, m.Attributes, m.AttributesMask); r != nil {
		return pcs.TcbLevel{}, r
	}
	if version == 0 {
		return platform, nil
	}
	id := fmt.Sprintf("TDX_%02X", version)
	for _, identity := range c.tcbInfo.TdxModuleIdentities {
		if !strings.EqualFold(identity.ID, id) {
			continue
		}
		if r := isIntelsModule(td, identity.Mrsigner, identity.Attributes, identity.AttributesMask); r != nil {
			return pcs.TcbLevel{}, r
		}
		for _, level := range identity.TcbLevels {
			if uint32(svn) >= level.Tcb.Isvsvn {
				return level, nil
			}
		}
	}
	return pcs.TcbLevel{}, judge.Rejected("TCB.MODULE", "a level of Intel's TCB info", fmt.Sprintf("none: %s, SVN %d", id, svn))
}

func isIntelsModule(td tdReport, signer, attributes, mask pcs.HexBytes) *attestation.Rejected {
	if r := judge.Equal("MRSIGNERSEAM", signer.Bytes, td.mrSignerSEAM); r != nil {
		return r
	}
	return masked("SEAMATTRIBUTES", attributes.Bytes, mask.Bytes, td.seamAttributes)
}

func (c *collateral) qeLevel(qe enclaveReport) (pcs.TcbLevel, *attestation.Rejected) {
	for _, level := range c.qeIdentity.TcbLevels {
		if uint32(qe.isvSVN) >= level.Tcb.Isvsvn {
			return level, nil
		}
	}
	return pcs.TcbLevel{}, judge.Rejected("TCB.QE", "a level of Intel's enclave identity",
		fmt.Sprintf("none: ISVSVN %d", qe.isvSVN))
}
