package snp_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/uuid"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/snp"
	"portcullis.dev/portcullis/tests/simtee"
)

// The control of all that follows: what is not spoilt is accepted.
func TestGenuineEvidenceYieldsItsClaims(t *testing.T) {
	tcb := uint64(must(kds.ComposeTCBParts(simtee.TCB)))
	for _, product := range []string{"Milan", "Genoa"} {
		for name, s := range map[string]*scene{
			"VCEK":                       set(product),
			"VCEK without certificates":  set(product).without(),
			"VLEK":                       set(product).cloud(),
			"VLEK without its ASVK":      withTable(set(product).cloud(), "VLEK"),
			"VCEK without its ASK":       withTable(set(product), "VCEK"),
			"ASK without its VCEK":       withTable(set(product), "ASK"),
			"another root beside":        withTable(set(product), "VCEK", "ASK", "forged ARK"),
			"with an entry of the cloud": withTable(set(product), "VCEK", "ASK", "cloud's"),
		} {
			t.Run(product+" "+name, func(t *testing.T) {
				claims := s.accepted(t)
				if claims.Platform != attestation.SNP || claims.PolicyHash != hostData ||
					!bytes.Equal(claims.Measurement, measurement[:]) || claims.TDX != nil || claims.SNP == nil ||
					*claims.SNP != (attestation.SNPClaims{Product: product, ReportedTCB: tcb, SignedBy: s.reference.SigningKey}) {
					t.Errorf("the claims are %+v of %+v", claims, claims.SNP)
				}
			})
		}
	}
}

// withTable leaves only some certificates in the table.
func withTable(s *scene, names ...string) *scene {
	w := s.machine.World
	known := map[string]abi.CertTableEntry{
		"VCEK":       {GUID: uuid.MustParse(abi.VcekGUID), RawCert: w.VCEK.Raw},
		"ASK":        {GUID: uuid.MustParse(abi.AskGUID), RawCert: w.ASK.Raw},
		"VLEK":       {GUID: uuid.MustParse(abi.VlekGUID), RawCert: w.VLEK.Raw},
		"ASVK":       {GUID: uuid.MustParse(abi.AskGUID), RawCert: w.ASVK.Raw},
		"forged ARK": {GUID: uuid.MustParse(abi.ArkGUID), RawCert: []byte("forged")},
		"cloud's":    {GUID: uuid.MustParse("00112233-4455-6677-8899-aabbccddeeff"), RawCert: []byte("hello")},
	}
	var entries []abi.CertTableEntry
	for _, name := range names {
		entries = append(entries, known[name])
	}
	s.corrupt(func(e *attestation.Evidence) { e.Certificates = simtee.Table(entries...) })
	return s
}

func policy(change func(*abi.SnpPolicy)) func(*scene) {
	return func(s *scene) {
		s.alter(func(r *spb.Report) {
			p := abi.SnpPolicy{SMT: true}
			change(&p)
			r.Policy = abi.SnpPolicyToBytes(p)
		})
	}
}

func report(alter func(*spb.Report)) func(*scene) { return func(s *scene) { s.alter(alter) } }

// tcb is that of the world, but for what change changes.
func tcb(change func(*kds.TCBParts)) uint64 {
	parts := simtee.TCB
	change(&parts)
	return uint64(must(kds.ComposeTCBParts(parts)))
}

var digest = bytes.Repeat([]byte{0xd1}, 48)

// Each row makes one thing wrong, signed as if it were right where the processor signs it.
func TestEveryFieldOfAReportIsChecked(t *testing.T) {
	for _, tc := range []struct {
		name  string
		spoil func(*scene)
		field string
	}{
		{"report data of another request", report(func(r *spb.Report) { r.ReportData[0] ^= 1 }), "REPORT_DATA"},
		{"report data differs in its last byte", report(func(r *spb.Report) { r.ReportData[63] ^= 1 }), "REPORT_DATA"},
		{"no report data", report(func(r *spb.Report) { clear(r.ReportData) }), "REPORT_DATA"},
		{"nothing expected", func(s *scene) { s.expect = attestation.ReportData{} }, "REPORT_DATA"},
		{"nothing expected, nothing reported", func(s *scene) {
			s.expect = attestation.ReportData{}
			s.alter(func(r *spb.Report) { clear(r.ReportData) })
		}, "REPORT_DATA"},
		{"another image", report(func(r *spb.Report) { r.Measurement[47] ^= 1 }), "MEASUREMENT"},
		{"no image", report(func(r *spb.Report) { clear(r.Measurement) }), "MEASUREMENT"},
		{"no initdata", report(func(r *spb.Report) { clear(r.HostData) }), "HOST_DATA"},
		{"asked from VMPL 1", report(func(r *spb.Report) { r.Vmpl = 1 }), "VMPL"},
		{"asked from VMPL 3", report(func(r *spb.Report) { r.Vmpl = 3 }), "VMPL"},
		{"asked by the host", report(func(r *spb.Report) { r.Vmpl = 0xffffffff }), "VMPL"},
		{"debugging allowed", policy(func(p *abi.SnpPolicy) { p.Debug = true }), "POLICY.DEBUG"},
		{"migration allowed", policy(func(p *abi.SnpPolicy) { p.MigrateMA = true }), "POLICY.MIGRATE_MA"},
		{"CXL allowed", policy(func(p *abi.SnpPolicy) { p.CXLAllowed = true }), "POLICY.CXL_ALLOW"},
		{"SMT allowed", func(s *scene) { *s.reference.AllowSMT = false }, "POLICY.SMT"},
		{"ABI minor too low", func(s *scene) {
			*s.reference.MinimumABI.Major, *s.reference.MinimumABI.Minor = 1, 51
			policy(func(p *abi.SnpPolicy) { p.ABIMajor, p.ABIMinor = 1, 50 })(s)
		}, "POLICY.ABI"},
		{"ABI major too low", func(s *scene) {
			*s.reference.MinimumABI.Major = 2
			policy(func(p *abi.SnpPolicy) { p.ABIMajor, p.ABIMinor = 1, 255 })(s)
		}, "POLICY.ABI"},
		{"malformed policy", report(func(r *spb.Report) { r.Policy = 0 }), "REPORT"},
		{"policy of the future", report(func(r *spb.Report) { r.Policy |= 1 << 40 }), "REPORT"},
		{"report version 2", report(func(r *spb.Report) { r.Version, r.Cpuid1EaxFms = 2, 0 }), "VERSION"},
		{"report version 6", report(func(r *spb.Report) { r.Version = 6 }), "VERSION"},
		{"another processor line", func(s *scene) {
			s.reference.Product, s.roots[other(s)] = other(s), s.machine.World.ARK
		}, "CPUID_FAM_ID"},
		{"a Turin", report(func(r *spb.Report) { r.Cpuid1EaxFms = abi.FmsToCpuid1Eax(0x1a, 2, 1) }), "CPUID_FAM_ID"},
		{"no processor", report(func(r *spb.Report) { r.Cpuid1EaxFms = 0 }), "CPUID_FAM_ID"},
		{"unknown signature algorithm", report(func(r *spb.Report) { r.SignatureAlgo = 2 }), "SIGNATURE_ALGO"},
		{"signed by another kind of key", func(s *scene) { s.reference.SigningKey = otherKey(s) }, "SIGNING_KEY"},
		{"says it is signed by the other key", report(func(r *spb.Report) { r.SignerInfo ^= 1 << 2 }), "SIGNING_KEY"},
		{"signed by nothing", report(func(r *spb.Report) { r.SignerInfo = uint32(abi.NoneReportSigner) << 2 }), "SIGNING_KEY"},
		{"a chip that is not listed", func(s *scene) {
			s.reference.AllowedChipIDs = []string{strings.Repeat("ab", 64), strings.Repeat("cd", 64)}
		}, "CHIP_ID"},
		{"an ID block", report(func(r *spb.Report) { r.IdKeyDigest = digest }), "ID_KEY_DIGEST"},
		{"an ID block of another key", func(s *scene) {
			s.reference.IDKeyDigests = []string{strings.Repeat("ab", 48)}
			s.alter(func(r *spb.Report) { r.IdKeyDigest = digest })
		}, "ID_KEY_DIGEST"},
		{"no ID block where one is wanted", func(s *scene) {
			s.reference.IDKeyDigests = []string{strings.Repeat("d1", 48)}
		}, "ID_KEY_DIGEST"},
		{"an author key", report(func(r *spb.Report) {
			r.AuthorKeyDigest, r.SignerInfo = digest, r.SignerInfo|1
		}), "AUTHOR_KEY_DIGEST"},
		{"an author key that was not used", report(func(r *spb.Report) { r.AuthorKeyDigest = digest }), "AUTHOR_KEY_EN"},
		{"an author key that is not named", report(func(r *spb.Report) { r.SignerInfo |= 1 }), "AUTHOR_KEY_EN"},
		{"another author key", func(s *scene) {
			s.reference.AuthorKeyDigests = []string{strings.Repeat("ab", 48)}
			s.alter(func(r *spb.Report) { r.AuthorKeyDigest, r.SignerInfo = digest, r.SignerInfo|1 })
		}, "AUTHOR_KEY_DIGEST"},
		{"no author key where one is wanted", func(s *scene) {
			s.reference.AuthorKeyDigests = []string{strings.Repeat("d1", 48)}
		}, "AUTHOR_KEY_DIGEST"},

		{"reported boot loader above the current", current(func(p *kds.TCBParts) { p.BlSpl-- }), "REPORTED_TCB.BOOT_LOADER"},
		{"reported SNP above the current", current(func(p *kds.TCBParts) { p.SnpSpl-- }), "REPORTED_TCB.SNP"},
		{"reported microcode above the current", current(func(p *kds.TCBParts) { p.UcodeSpl-- }), "REPORTED_TCB.MICROCODE"},
		{"boot loader not committed", committed(func(p *kds.TCBParts) { p.BlSpl-- }), "COMMITTED_TCB"},
		{"TEE not committed", committed(func(p *kds.TCBParts) { p.TeeSpl++ }), "COMMITTED_TCB"},
		{"SNP not committed", committed(func(p *kds.TCBParts) { p.SnpSpl-- }), "COMMITTED_TCB"},
		{"microcode not committed", committed(func(p *kds.TCBParts) { p.UcodeSpl-- }), "COMMITTED_TCB"},
		{"current firmware above the committed", report(func(r *spb.Report) {
			r.CurrentTcb = tcb(func(p *kds.TCBParts) { p.UcodeSpl++ })
		}), "COMMITTED_TCB"},
		{"build not committed", report(func(r *spb.Report) { r.CommittedBuild-- }), "COMMITTED_BUILD"},
		{"minor version not committed", report(func(r *spb.Report) { r.CommittedMinor-- }), "COMMITTED_MINOR"},
		{"major version not committed", report(func(r *spb.Report) { r.CommittedMajor-- }), "COMMITTED_MAJOR"},
		{"boot loader below the minimum", func(s *scene) { *s.reference.MinimumTCB.BootLoader++ }, "REPORTED_TCB.BOOT_LOADER"},
		{"TEE below the minimum", func(s *scene) { *s.reference.MinimumTCB.TEE++ }, "REPORTED_TCB.TEE"},
		{"SNP below the minimum", func(s *scene) { *s.reference.MinimumTCB.SNP++ }, "REPORTED_TCB.SNP"},
		{"microcode below the minimum", func(s *scene) { *s.reference.MinimumTCB.Microcode++ }, "REPORTED_TCB.MICROCODE"},
		{"launched on an old boot loader", launched(func(p *kds.TCBParts) { p.BlSpl-- }), "LAUNCH_TCB.BOOT_LOADER"},
		{"launched on old SNP firmware", launched(func(p *kds.TCBParts) { p.SnpSpl-- }), "LAUNCH_TCB.SNP"},
		{"launched on old microcode", launched(func(p *kds.TCBParts) { p.UcodeSpl-- }), "LAUNCH_TCB.MICROCODE"},
	} {
		for name, s := range everyKind() {
			t.Run(tc.name+" "+name, func(t *testing.T) {
				tc.spoil(s)
				s.refused(t, tc.field)
			})
		}
	}
	for name, s := range everyKind() {
		t.Run("reported TCB is not the certificate's "+name, func(t *testing.T) {
			report(func(r *spb.Report) {
				r.ReportedTcb = tcb(func(p *kds.TCBParts) { p.UcodeSpl++ })
				r.CurrentTcb, r.CommittedTcb = r.ReportedTcb, r.ReportedTcb
			})(s)
			if strings.Contains(name, "without") {
				s.refused(t, "unavailable: the VCEK of a Milan") // the KDS has none for that TCB
				return
			}
			s.refused(t, "REPORTED_TCB")
		})
	}
	t.Run("launched on an old TEE", func(t *testing.T) {
		// The world's is 0 and cannot be lower, so one of another TCB is needed.
		s := set("Milan")
		newer := simtee.TCB
		newer.TeeSpl = 2
		s.certify(func(c *simtee.Certificates) {
			c.VCEK.ExtraExtensions = simtee.VCEKExtensions(newer, c.VCEK.ExtraExtensions[2].Value)
		})
		*s.reference.MinimumTCB.TEE = 2
		s.alter(func(r *spb.Report) {
			n := tcb(func(p *kds.TCBParts) { *p = newer })
			r.CurrentTcb, r.CommittedTcb, r.ReportedTcb, r.LaunchTcb = n, n, n, n
		})
		s.accepted(t)
		s.alter(func(r *spb.Report) {
			n := tcb(func(p *kds.TCBParts) { *p = newer })
			r.CurrentTcb, r.CommittedTcb, r.ReportedTcb = n, n, n
			r.LaunchTcb = tcb(func(p *kds.TCBParts) { *p = newer; p.TeeSpl = 1 })
		})
		s.refused(t, "LAUNCH_TCB.TEE")
		s.alter(func(r *spb.Report) {
			n := tcb(func(p *kds.TCBParts) { *p = newer; p.TeeSpl = 1 })
			r.CurrentTcb, r.CommittedTcb, r.LaunchTcb = n, n, tcb(func(p *kds.TCBParts) { *p = newer })
			r.ReportedTcb = r.LaunchTcb
		})
		s.refused(t, "REPORTED_TCB.TEE")
	})
}

// everyKind is a scene of every product and key. They differ by no check but those of certificates.
func everyKind() map[string]*scene {
	return map[string]*scene{
		"Milan VCEK": set("Milan"), "Milan VLEK": set("Milan").cloud(),
		"Genoa VCEK": set("Genoa"), "Genoa VLEK": set("Genoa").cloud(),
		"Milan VCEK without certificates": set("Milan").without(),
	}
}

func current(change func(*kds.TCBParts)) func(*scene) {
	return report(func(r *spb.Report) { r.CurrentTcb, r.CommittedTcb = tcb(change), tcb(change) })
}

func committed(change func(*kds.TCBParts)) func(*scene) {
	return report(func(r *spb.Report) { r.CommittedTcb = tcb(change) })
}

func launched(change func(*kds.TCBParts)) func(*scene) {
	return report(func(r *spb.Report) { r.LaunchTcb = tcb(change) })
}

func other(s *scene) string {
	if s.machine.World.Product == "Milan" {
		return "Genoa"
	}
	return "Milan"
}

func otherKey(s *scene) string {
	if s.machine.SignedBy == abi.VcekReportSigner {
		return "VLEK"
	}
	return "VCEK"
}

func TestWhatAReferenceValueListsIsAccepted(t *testing.T) {
	chip := set("Milan").chip(t)
	for name, allow := range map[string]func(*scene){
		"a chip that is listed": func(s *scene) { s.reference.AllowedChipIDs = []string{strings.Repeat("ab", 64), chip} },
		"an ID key": func(s *scene) {
			s.reference.IDKeyDigests = []string{strings.Repeat("ab", 48), strings.Repeat("d1", 48)}
			s.alter(func(r *spb.Report) { r.IdKeyDigest = digest })
		},
		"an author key": func(s *scene) {
			s.reference.IDKeyDigests = []string{strings.Repeat("d1", 48)}
			s.reference.AuthorKeyDigests = []string{strings.Repeat("d1", 48)}
			s.alter(func(r *spb.Report) {
				r.IdKeyDigest, r.AuthorKeyDigest, r.SignerInfo = digest, digest, r.SignerInfo|1
			})
		},
		"an ABI of exactly the minimum": func(s *scene) {
			*s.reference.MinimumABI.Major, *s.reference.MinimumABI.Minor = 1, 55
			policy(func(p *abi.SnpPolicy) { p.ABIMajor, p.ABIMinor = 1, 55 })(s)
		},
		"an ABI of a later major": func(s *scene) {
			*s.reference.MinimumABI.Major, *s.reference.MinimumABI.Minor = 1, 55
			policy(func(p *abi.SnpPolicy) { p.ABIMajor, p.ABIMinor = 2, 0 })(s)
		},
		"no SMT where it may be": policy(func(p *abi.SnpPolicy) { p.SMT = false }),
		"no SMT where it may not be": func(s *scene) {
			*s.reference.AllowSMT = false
			policy(func(p *abi.SnpPolicy) { p.SMT = false })(s)
		},
		"newer firmware than reported": current(func(p *kds.TCBParts) { p.UcodeSpl++ }),
		"report version 5":             report(func(r *spb.Report) { r.Version = 5 }),
	} {
		for kind, s := range everyKind() {
			t.Run(name+" "+kind, func(t *testing.T) {
				allow(s)
				s.accepted(t)
			})
		}
	}
}

func TestAChipMayHideItsIdentity(t *testing.T) {
	hide := func(r *spb.Report) { clear(r.ChipId) }
	chip := set("Milan").chip(t)
	t.Run("its VCEK tells", func(t *testing.T) {
		s := set("Milan")
		s.reference.AllowedChipIDs = []string{chip}
		s.alter(hide)
		s.accepted(t)
	})
	t.Run("any chip's VLEK", func(t *testing.T) {
		s := set("Milan").cloud()
		s.alter(hide)
		s.accepted(t)
	})
	t.Run("a VLEK does not tell", func(t *testing.T) {
		s := set("Milan").cloud()
		s.reference.AllowedChipIDs = []string{chip}
		s.alter(hide)
		s.refused(t, "CHIP_ID")
	})
	t.Run("no VCEK to ask for", func(t *testing.T) {
		s := set("Milan").without()
		s.alter(hide)
		s.refused(t, "CHIP_ID")
		if asked := s.kds.Asked(); len(asked) > 0 {
			t.Errorf("the KDS was asked for %v", asked)
		}
	})
}

// What was changed after it was signed.
func TestCorruptedEvidenceIsRejected(t *testing.T) {
	w := worlds["Milan"]()
	entry := func(guid string, cert []byte) abi.CertTableEntry {
		return abi.CertTableEntry{GUID: uuid.MustParse(guid), RawCert: cert}
	}
	vcek, ask := entry(abi.VcekGUID, w.VCEK.Raw), entry(abi.AskGUID, w.ASK.Raw)
	for _, tc := range []struct {
		name    string
		corrupt func(*attestation.Evidence)
		field   string
	}{
		{"claims to be pretended", func(e *attestation.Evidence) { e.Platform = attestation.Simulated }, "PLATFORM"},
		{"claims to be a TD's", func(e *attestation.Evidence) { e.Platform = attestation.TDX }, "PLATFORM"},
		{"claims nothing", func(e *attestation.Evidence) { e.Platform = "" }, "PLATFORM"},
		{"no report", func(e *attestation.Evidence) { e.Report = nil }, "REPORT"},
		{"short report", func(e *attestation.Evidence) { e.Report = e.Report[:len(e.Report)-1] }, "REPORT"},
		{"long report", func(e *attestation.Evidence) { e.Report = append(e.Report, 0) }, "REPORT"},
		{"reserved byte set", func(e *attestation.Evidence) { e.Report[0x210] = 1 }, "REPORT"},
		{"stepping that is read as another", func(e *attestation.Evidence) { e.Report[0x18a] |= 0x10 }, "REPORT"},
		{"signed by a key of the future", func(e *attestation.Evidence) { e.Report[0x48] |= 1 << 5 }, "REPORT"},
		{"signed by a reserved kind of key", func(e *attestation.Evidence) { e.Report[0x48] |= 2 << 2 }, "REPORT"},
		{"byte behind the signature", func(e *attestation.Evidence) { e.Report[0x49f] = 1 }, "REPORT"},
		{"image changed", func(e *attestation.Evidence) { e.Report[0x90] ^= 1 }, "SIGNATURE"},
		{"policy hash changed", func(e *attestation.Evidence) { e.Report[0xc0] ^= 1 }, "SIGNATURE"},
		{"report data changed", func(e *attestation.Evidence) { e.Report[0x50] ^= 1 }, "SIGNATURE"},
		{"signature changed", func(e *attestation.Evidence) { e.Report[0x2a0] ^= 1 }, "SIGNATURE"},
		{"signature of 512 bits", func(e *attestation.Evidence) { e.Report[0x2a0+71] = 1 }, "SIGNATURE"},
		{"signature zero", func(e *attestation.Evidence) { clear(e.Report[0x2a0:]) }, "SIGNATURE"},
		{"table without an end", func(e *attestation.Evidence) { e.Certificates = simtee.Table(vcek, ask)[:48] }, "CHAIN"},
		{"table of one byte", func(e *attestation.Evidence) { e.Certificates = []byte{0} }, "CHAIN"},
		{"table too large", func(e *attestation.Evidence) { e.Certificates = make([]byte, 1<<20) }, "CHAIN"},
		{"entry past the end", func(e *attestation.Evidence) {
			binary.LittleEndian.PutUint32(e.Certificates[20:], 1<<20)
		}, "CHAIN"},
		{"entry of 4 GiB that wraps around", func(e *attestation.Evidence) {
			binary.LittleEndian.PutUint32(e.Certificates[20:], ^uint32(0)-9)
		}, "CHAIN"},
		{"two VCEKs", func(e *attestation.Evidence) { e.Certificates = simtee.Table(vcek, vcek, ask) }, "CHAIN"},
		{"VCEK is not a certificate", func(e *attestation.Evidence) {
			e.Certificates = simtee.Table(entry(abi.VcekGUID, []byte("no")), ask)
		}, "CHAIN.VCEK"},
		{"VCEK with a byte behind", func(e *attestation.Evidence) {
			e.Certificates = simtee.Table(entry(abi.VcekGUID, append(slices.Clone(w.VCEK.Raw), 0)), ask)
		}, "CHAIN.VCEK"},
		{"VCEK's signature changed", func(e *attestation.Evidence) {
			forged := slices.Clone(w.VCEK.Raw)
			forged[len(forged)-1] ^= 1
			e.Certificates = simtee.Table(entry(abi.VcekGUID, forged), ask)
		}, "CHAIN.VCEK"},
		{"ASK's signature changed", func(e *attestation.Evidence) {
			forged := slices.Clone(w.ASK.Raw)
			forged[len(forged)-1] ^= 1
			e.Certificates = simtee.Table(vcek, entry(abi.AskGUID, forged))
		}, "CHAIN.ASK"},
		{"ASK is not a certificate", func(e *attestation.Evidence) {
			e.Certificates = simtee.Table(vcek, entry(abi.AskGUID, []byte("no")))
		}, "CHAIN.ASK"},
		{"VCEK and ASK swapped", func(e *attestation.Evidence) {
			e.Certificates = simtee.Table(entry(abi.VcekGUID, w.ASK.Raw), entry(abi.AskGUID, w.VCEK.Raw))
		}, "CHAIN.VCEK"},
		{"VCEK in place of the ASK", func(e *attestation.Evidence) {
			e.Certificates = simtee.Table(vcek, entry(abi.AskGUID, w.VCEK.Raw))
		}, "CHAIN.ASK"},
		{"root in place of the ASK", func(e *attestation.Evidence) {
			e.Certificates = simtee.Table(vcek, entry(abi.AskGUID, w.ARK.Raw))
		}, "CHAIN.VCEK"},
		{"ASVK in place of the ASK", func(e *attestation.Evidence) {
			e.Certificates = simtee.Table(vcek, entry(abi.AskGUID, w.ASVK.Raw))
		}, "CHAIN.VCEK"},
		{"VLEK in place of the VCEK", func(e *attestation.Evidence) {
			e.Certificates = simtee.Table(entry(abi.VcekGUID, w.VLEK.Raw), ask)
		}, "CHAIN.VCEK"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := set("Milan")
			s.corrupt(tc.corrupt)
			s.refused(t, tc.field)
		})
	}
	t.Run("a cloud's evidence without its VLEK", func(t *testing.T) {
		for _, s := range []*scene{
			withTable(set("Milan").cloud(), "ASVK"), withTable(set("Milan").cloud(), "VCEK", "ASK"), set("Milan").cloud().without(),
		} {
			s.refused(t, "CHAIN.VLEK")
			if asked := s.kds.Asked(); len(asked) > 0 {
				t.Errorf("the KDS was asked for %v, which it does not give to us", asked)
			}
		}
	})
}

// Certificates of the right keys but for one property.
func TestEveryCertificateIsChecked(t *testing.T) {
	past, future := time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	older := simtee.TCB
	older.SnpSpl--
	for _, tc := range []struct {
		name  string
		cloud bool
		alter func(*simtee.Certificates)
		field string
	}{
		{"ASK expired", false, func(c *simtee.Certificates) { c.ASK.NotAfter = past }, "CHAIN.ASK"},
		{"ASK not valid yet", false, func(c *simtee.Certificates) { c.ASK.NotBefore = future }, "CHAIN.ASK"},
		{"ASK is no CA", false, func(c *simtee.Certificates) { c.ASK.IsCA, c.ASK.MaxPathLenZero = false, false }, "CHAIN.ASK"},
		{"ASK of another product", false, func(c *simtee.Certificates) { c.ASK.Subject.CommonName = "SEV-Genoa" }, "CHAIN"},
		{"ASK of the cloud's keys", false, func(c *simtee.Certificates) { c.ASK.Subject.CommonName = "SEV-VLEK-Milan" }, "CHAIN"},
		{"VCEK expired", false, func(c *simtee.Certificates) { c.VCEK.NotAfter = past }, "CHAIN.VCEK"},
		{"VCEK not valid yet", false, func(c *simtee.Certificates) { c.VCEK.NotBefore = future }, "CHAIN.VCEK"},
		{"VCEK of another name", false, func(c *simtee.Certificates) { c.VCEK.Subject.CommonName = "SEV-VLEK" }, "CHAIN"},
		{"VCEK of another company", false, func(c *simtee.Certificates) { c.VCEK.Subject.Organization = []string{"x"} }, "CHAIN"},
		{"VCEK without AMD's extensions", false, func(c *simtee.Certificates) { c.VCEK.ExtraExtensions = nil }, "CHAIN.VCEK"},
		{"VCEK without its TCB", false, func(c *simtee.Certificates) {
			c.VCEK.ExtraExtensions = c.VCEK.ExtraExtensions[:4]
		}, "CHAIN.VCEK"},
		{"VCEK without its chip", false, func(c *simtee.Certificates) {
			c.VCEK.ExtraExtensions = slices.Delete(c.VCEK.ExtraExtensions, 2, 3)
		}, "CHAIN.VCEK"},
		{"VCEK with the component that Turin has", false, func(c *simtee.Certificates) {
			c.VCEK.ExtraExtensions = append(c.VCEK.ExtraExtensions,
				pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1, 3, 9}, Value: []byte{2, 1, 0}})
		}, "CHAIN.VCEK"},
		{"VCEK of another chip", false, func(c *simtee.Certificates) {
			c.VCEK.ExtraExtensions = simtee.VCEKExtensions(simtee.TCB, bytes.Repeat([]byte{9}, abi.ChipIDSize))
		}, "CHIP_ID"},
		{"VCEK of another TCB", false, func(c *simtee.Certificates) {
			c.VCEK.ExtraExtensions = simtee.VCEKExtensions(older, c.VCEK.ExtraExtensions[2].Value)
		}, "REPORTED_TCB"},
		{"ASVK expired", true, func(c *simtee.Certificates) { c.ASVK.NotAfter = past }, "CHAIN.ASVK"},
		{"ASVK is no CA", true, func(c *simtee.Certificates) { c.ASVK.IsCA, c.ASVK.MaxPathLenZero = false, false }, "CHAIN.ASVK"},
		{"ASVK of another product", true, func(c *simtee.Certificates) { c.ASVK.Subject.CommonName = "SEV-VLEK-Genoa" }, "CHAIN"},
		{"ASVK of the chips' keys", true, func(c *simtee.Certificates) { c.ASVK.Subject.CommonName = "SEV-Milan" }, "CHAIN"},
		{"VLEK expired", true, func(c *simtee.Certificates) { c.VLEK.NotAfter = past }, "CHAIN.VLEK"},
		{"VLEK not valid yet", true, func(c *simtee.Certificates) { c.VLEK.NotBefore = future }, "CHAIN.VLEK"},
		{"VLEK of another name", true, func(c *simtee.Certificates) { c.VLEK.Subject.CommonName = "SEV-VCEK" }, "CHAIN"},
		{"VLEK without its cloud", true, func(c *simtee.Certificates) {
			c.VLEK.ExtraExtensions = slices.Delete(c.VLEK.ExtraExtensions, 2, 3)
		}, "CHAIN.VLEK"},
		{"VLEK of another TCB", true, func(c *simtee.Certificates) {
			c.VLEK.ExtraExtensions = simtee.VLEKExtensions("Milan", older)
		}, "REPORTED_TCB"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := set("Milan")
			if tc.cloud {
				s.cloud()
			}
			s.certify(tc.alter)
			s.refused(t, tc.field)
		})
	}
	t.Run("ARK expired", func(t *testing.T) {
		s := set("Milan")
		s.certify(func(c *simtee.Certificates) { c.ARK.NotAfter = past })
		s.roots = s.machine.World.Roots()
		s.refused(t, "CHAIN.ASK")
	})
	t.Run("a key that nobody certified", func(t *testing.T) {
		s := set("Milan")
		mixed := *s.machine.World
		mixed.Keys.VCEK = must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
		s.machine.World = &mixed
		s.refused(t, "SIGNATURE")
	})
}

// forger is a world whose certificates have every name right and no key.
var forger = sync.OnceValue(func() *simtee.World {
	right := simtee.PublishedKeys()
	return must(simtee.New(simtee.Keys{ARK: right.ASVK, ASK: right.ARK, VCEK: right.VLEK}))
})

func TestTheRootIsNotTheHosts(t *testing.T) {
	w := worlds["Milan"]()
	for name, tc := range map[string]struct {
		mix   func(*simtee.World)
		field string
	}{
		"another world": {func(*simtee.World) {}, "CHAIN.ASK"},
		"another world's VCEK behind the right ASK": {func(f *simtee.World) { f.ASK, f.ARK = w.ASK, w.ARK }, "CHAIN.VCEK"},
		"another world with the right root":         {func(f *simtee.World) { f.ARK = w.ARK }, "CHAIN.ASK"},
	} {
		t.Run(name, func(t *testing.T) {
			s := set("Milan")
			mixed := *forger()
			tc.mix(&mixed)
			s.machine.World = &mixed
			s.refused(t, tc.field)
		})
	}
}

// What the KDS says: each row is a revocation list of another kind.
func TestEveryRevocationListIsChecked(t *testing.T) {
	w := worlds["Milan"]()
	alter := func(change func(*x509.RevocationList)) func(*scene) {
		return func(s *scene) { s.kds.Alter = change }
	}
	answer := func(change func([]byte) []byte) func(*scene) {
		return func(s *scene) {
			s.kds.Answer = func(_ context.Context, _ string, body []byte) ([]byte, error) { return change(body), nil }
		}
	}
	signed := func(by *simtee.World) []byte {
		return must(simtee.SignList(&x509.RevocationList{
			Number: big.NewInt(1), SignatureAlgorithm: x509.SHA384WithRSAPSS,
			ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour),
		}, by))
	}
	const unavailable = "unavailable: a current CRL of Milan"
	for _, tc := range []struct {
		name  string
		cloud bool
		spoil func(*scene)
		want  string
	}{
		{"ASK revoked", false, func(s *scene) { s.revoke(w.VLEK, w.ASK) }, "CHAIN.ASK"},
		{"ARK revoked", false, func(s *scene) { s.revoke(w.ARK) }, "CHAIN.ARK"},
		{"ASVK revoked", true, func(s *scene) { s.revoke(w.ASVK) }, "CHAIN.ASVK"},
		{"VLEK revoked", true, func(s *scene) { s.revoke(w.VLEK) }, "CHAIN.VLEK"},
		{"ARK revoked under a cloud", true, func(s *scene) { s.revoke(w.ARK) }, "CHAIN.ARK"},
		{"the other ones revoked", false, func(s *scene) { s.revoke(w.ASVK, w.VLEK) }, ""},
		{"the other ones revoked under a cloud", true, func(s *scene) { s.revoke(w.ASK) }, ""},
		{"stale", false, alter(func(l *x509.RevocationList) { l.NextUpdate = time.Now().Add(-time.Minute) }), unavailable},
		{"not valid yet", false, alter(func(l *x509.RevocationList) { l.ThisUpdate = time.Now().Add(time.Minute) }), unavailable},
		{"stale, and the ASK revoked", false, func(s *scene) {
			s.revoke(w.ASK)
			revoke := s.kds.Alter
			s.kds.Alter = func(l *x509.RevocationList) { revoke(l); l.NextUpdate = time.Now().Add(-time.Minute) }
		}, unavailable},
		{"with a critical extension", false, alter(func(l *x509.RevocationList) {
			l.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 27}, Critical: true, Value: []byte{2, 1, 1}}}
		}), "CRL"},
		{"of another product", false, answer(func([]byte) []byte { return signed(worlds["Genoa"]()) }), "CRL"},
		{"of another world", false, answer(func([]byte) []byte { return signed(forger()) }), "CRL"},
		{"its signature changed", false, answer(func(b []byte) []byte { b = slices.Clone(b); b[len(b)-1] ^= 1; return b }), "CRL"},
		{"truncated", false, answer(func(b []byte) []byte { return b[:len(b)-1] }), "CRL"},
		{"empty", false, answer(func([]byte) []byte { return nil }), "CRL"},
		{"a web page", false, answer(func([]byte) []byte { return []byte("<html>") }), "CRL"},
		{"a certificate", false, answer(func([]byte) []byte { return w.ARK.Raw }), "CRL"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := set("Milan")
			if tc.cloud {
				s.cloud()
			}
			tc.spoil(s)
			if tc.want == "" {
				s.accepted(t)
				return
			}
			s.refused(t, tc.want)
		})
	}
}

func TestTheRevocationListIsAlwaysAskedFor(t *testing.T) {
	for kind, s := range everyKind() {
		t.Run(kind, func(t *testing.T) {
			s.accepted(t)
			url := kds.CrlLinkByKey(s.machine.World.Product, s.machine.SignedBy)
			if asked := s.kds.Asked(); !slices.Contains(asked, url) {
				t.Errorf("asked for %v, want %s among them", asked, url)
			}
		})
	}
}

// A list that was verified is remembered by its bytes: the next one is looked at again.
func TestARevocationIsNoticedAtTheNextList(t *testing.T) {
	w := worlds["Milan"]()
	s := set("Milan")
	v, e := s.validator(t), s.issue(t)
	for range 2 {
		if _, err := v.Validate(t.Context(), e, reportData); err != nil {
			t.Fatal(err)
		}
	}
	next := must(simtee.SignList(&x509.RevocationList{
		Number: big.NewInt(2), SignatureAlgorithm: x509.SHA384WithRSAPSS,
		ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: w.ASK.SerialNumber, RevocationTime: time.Now()}},
	}, w))
	s.kds.Answer = func(context.Context, string, []byte) ([]byte, error) { return next, nil }
	_, err := v.Validate(t.Context(), e, reportData)
	if r, ok := errors.AsType[*attestation.Rejected](err); !ok || r.Field != "CHAIN.ASK" {
		t.Errorf("got %v, want CHAIN.ASK rejected", err)
	}
}

// What else the KDS may send.
func TestEveryCertificateOfTheKDSIsChecked(t *testing.T) {
	w := worlds["Milan"]()
	for _, tc := range []struct {
		name string
		of   string // part of the URL
		body []byte
		want string
	}{
		{"an empty VCEK", "snpSPL", nil, "CHAIN.VCEK"},
		{"a web page for a VCEK", "snpSPL", []byte("<html>"), "CHAIN.VCEK"},
		{"another world's VCEK", "snpSPL", forger().VCEK.Raw, "SIGNATURE"},
		{"another key's VCEK", "snpSPL", w.VLEK.Raw, "CHAIN.VCEK"},
		{"no certificates", "cert_chain", nil, "CHAIN.ASK"},
		{"a web page for certificates", "cert_chain", []byte("<html>"), "CHAIN.ASK"},
		{"another world's certificates", "cert_chain", []byte(forger().RootPEM() + forger().RootPEM()), "CHAIN.ASK"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := set("Milan").without()
			s.kds.Answer = func(_ context.Context, url string, body []byte) ([]byte, error) {
				if strings.Contains(url, tc.of) {
					return tc.body, nil
				}
				return body, nil
			}
			s.refused(t, tc.want)
		})
	}
}

// What is too large is not even read.
func TestAnswersOfTheKDSAreBounded(t *testing.T) {
	for of, field := range map[string]string{"snpSPL": "CHAIN.VCEK", "cert_chain": "CHAIN.ASK", "/crl": "CRL"} {
		s := set("Milan").without()
		s.kds.Answer = func(_ context.Context, url string, body []byte) ([]byte, error) {
			if strings.Contains(url, of) {
				body = make([]byte, 2<<20)
			}
			return body, nil
		}
		_, err := s.validator(t).Validate(t.Context(), s.issue(t), reportData)
		if r, ok := errors.AsType[*attestation.Rejected](err); !ok || r.Field != field || r.Got != "2097152 bytes" {
			t.Errorf("got %v, want %s of 2097152 bytes rejected", err, field)
		}
	}
}

func TestWhatTheVendorCannotSayIsUnavailable(t *testing.T) {
	down := errors.New("no route to host")
	for of, want := range map[string]string{
		"snpSPL":     "unavailable: the VCEK of a Milan",
		"cert_chain": "unavailable: the ASK of Milan",
		"/crl":       "unavailable: the CRL of Milan",
	} {
		t.Run(of, func(t *testing.T) {
			s := set("Milan").without()
			s.kds.Answer = func(_ context.Context, url string, body []byte) ([]byte, error) {
				if strings.Contains(url, of) {
					return nil, down
				}
				return body, nil
			}
			s.refused(t, want)
			_, err := s.validator(t).Validate(t.Context(), s.issue(t), reportData)
			if !errors.Is(err, down) {
				t.Errorf("got %v, want it to say why", err)
			}
		})
	}
	t.Run("bad evidence is refused all the same", func(t *testing.T) {
		s := set("Milan")
		s.kds.Answer = func(context.Context, string, []byte) ([]byte, error) { return nil, down }
		s.alter(func(r *spb.Report) { r.Measurement[0] ^= 1 })
		s.refused(t, "MEASUREMENT")
	})
	t.Run("and nobody is asked about it", func(t *testing.T) {
		s := set("Milan").without()
		s.alter(func(r *spb.Report) { r.Measurement[0] ^= 1 })
		s.refused(t, "MEASUREMENT")
		if asked := s.kds.Asked(); len(asked) > 0 {
			t.Errorf("the KDS was asked for %v", asked)
		}
	})
}

func TestAnOutageIsBridgedByWhatIsRemembered(t *testing.T) {
	s := set("Milan").without()
	v0, e := s.validator(t), s.issue(t)
	if _, err := v0.Validate(t.Context(), e, reportData); err != nil {
		t.Fatal(err)
	}
	remembered := make(map[string][]byte)
	for _, url := range s.kds.Asked() {
		_, remembered[url], _ = s.kds.Get(t.Context(), url)
	}
	now := time.Now()
	v, err := snp.NewValidator([]snp.ReferenceValue{s.reference}, snp.Options{
		Collateral: getter(func(url string) ([]byte, error) {
			if body, ok := remembered[url]; ok {
				return body, nil
			}
			return nil, errors.New("no route to host")
		}),
		Roots: s.roots, Now: func() time.Time { return now },
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Validate(t.Context(), e, reportData); err != nil {
		t.Errorf("what was remembered did not serve: %v", err)
	}
	now = now.AddDate(0, 2, 0)
	_, err = v.Validate(t.Context(), e, reportData)
	if u, ok := errors.AsType[*attestation.Unavailable](err); !ok || u.What != "a current CRL of Milan" {
		t.Errorf("past NextUpdate: got %v, want a current CRL of Milan unavailable", err)
	}
}

func TestACallerThatHasGoneGetsUnavailable(t *testing.T) {
	s := set("Milan")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.validator(t).Validate(ctx, s.issue(t), reportData)
	if _, ok := errors.AsType[*attestation.Unavailable](err); !ok || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want Unavailable because of the context", err)
	}
}

func TestACancelledContextStopsAFetchAtOnce(t *testing.T) {
	for _, of := range []string{"snpSPL", "cert_chain", "/crl"} {
		s := set("Milan").without()
		e := s.issue(t)
		today := time.Now()
		s.now = func() time.Time { return today } // the bubble's clock begins in 2000
		s.kds.Answer = func(ctx context.Context, url string, body []byte) ([]byte, error) {
			if !strings.Contains(url, of) {
				return body, nil
			}
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(time.Minute):
				return body, nil
			}
		}
		v := s.validator(t)
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Second, cancel)
			begin := time.Now()
			_, err := v.Validate(ctx, e, reportData)
			if _, ok := errors.AsType[*attestation.Unavailable](err); !ok || !errors.Is(err, context.Canceled) {
				t.Errorf("%s: got %v, want Unavailable because of the context", of, err)
			}
			if after := time.Since(begin) - time.Second; after > 100*time.Millisecond {
				t.Errorf("%s: the fetch ended %v after its context", of, after)
			}
		})
	}
}

func TestOneValidatorServesManyAtOnce(t *testing.T) {
	milan, genoa := set("Milan"), set("Genoa").cloud()
	v, err := snp.NewValidator([]snp.ReferenceValue{milan.reference, genoa.reference}, snp.Options{
		Collateral: &simtee.KDS{Worlds: []*simtee.World{milan.machine.World, genoa.machine.World}},
		Roots:      map[string]*x509.Certificate{"Milan": milan.machine.World.ARK, "Genoa": genoa.machine.World.ARK},
	})
	if err != nil {
		t.Fatal(err)
	}
	good := []attestation.Evidence{milan.issue(t), genoa.issue(t), milan.without().issue(t)}
	bad := set("Milan")
	bad.alter(func(r *spb.Report) { r.Measurement[0] ^= 1 })
	wrong := bad.issue(t)
	var all sync.WaitGroup
	for i := range 150 {
		all.Go(func() {
			if _, err := v.Validate(t.Context(), good[i%len(good)], reportData); err != nil {
				t.Error(err)
			}
		})
	}
	for range 50 {
		all.Go(func() {
			if _, err := v.Validate(t.Context(), wrong, reportData); err == nil {
				t.Error("bad evidence was accepted")
			}
		})
	}
	all.Wait()
}

func TestAnyOfSeveralReferenceValuesAccepts(t *testing.T) {
	s := set("Milan")
	next := s.reference
	next.Measurement = strings.Repeat("5a", 48)
	genoa := set("Genoa").cloud().reference
	s.roots = map[string]*x509.Certificate{"Milan": worlds["Milan"]().ARK, "Genoa": worlds["Genoa"]().ARK}
	v, err := snp.NewValidator([]snp.ReferenceValue{genoa, next, s.reference}, snp.Options{Collateral: s.kds, Roots: s.roots})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Validate(t.Context(), s.issue(t), reportData); err != nil {
		t.Error(err)
	}
	s.machine.Measurement = simtee.Measurement{1}
	_, err = v.Validate(t.Context(), s.issue(t), reportData)
	if r, ok := errors.AsType[*attestation.Rejected](err); !ok || r.Field != "MEASUREMENT" {
		t.Errorf("got %v, want MEASUREMENT rejected: the closest reference value failed there", err)
	}
}

func TestNothingExpectedIsNothingAccepted(t *testing.T) {
	s := set("Milan")
	e := s.issue(t)
	v, err := snp.NewValidator(nil, snp.Options{Collateral: s.kds, Roots: s.roots})
	if err != nil {
		t.Fatal(err)
	}
	_, err = v.Validate(t.Context(), e, reportData)
	if r, ok := errors.AsType[*attestation.Rejected](err); !ok || r.Field != "PLATFORM" {
		t.Errorf("without a reference value: got %v, want PLATFORM rejected", err)
	}
	_, err = s.validator(t).Validate(t.Context(), attestation.Evidence{}, reportData)
	if r, ok := errors.AsType[*attestation.Rejected](err); !ok || r.Field != "PLATFORM" {
		t.Errorf("without evidence: got %v, want PLATFORM rejected", err)
	}
}

func TestAValidatorThatLacksSomethingIsNotMade(t *testing.T) {
	s := set("Milan")
	for name, tc := range map[string]struct {
		options snp.Options
		fault   string
	}{
		"no collateral":   {snp.Options{Roots: s.roots}, "no source of collateral"},
		"no roots":        {snp.Options{Collateral: s.kds, Roots: map[string]*x509.Certificate{}}, "no root for Milan"},
		"an empty root":   {snp.Options{Collateral: s.kds, Roots: map[string]*x509.Certificate{"Milan": nil}}, "no root for Milan"},
		"another's roots": {snp.Options{Collateral: s.kds, Roots: worlds["Genoa"]().Roots()}, "no root for Milan"},
	} {
		t.Run(name, func(t *testing.T) {
			v, err := snp.NewValidator([]snp.ReferenceValue{s.reference}, tc.options)
			if v != nil || err == nil || !strings.Contains(err.Error(), tc.fault) {
				t.Errorf("got %v, want %q", err, tc.fault)
			}
		})
	}
}

// The holes that go-sev-guest has or had: each would let something pass if this package leant on the library alone.

func TestLibraryHoleForgedTableWithoutTrustedRoots(t *testing.T) {
	s := set("Milan")
	s.machine.World = forger() // its table carries its ARK
	s.roots = nil              // AMD's own
	s.refused(t, "CHAIN.ASK")
	for kind, s := range everyKind() {
		t.Run(kind, func(t *testing.T) {
			s.roots = nil
			_, err := s.validator(t).Validate(t.Context(), s.issue(t), reportData)
			if r, ok := errors.AsType[*attestation.Rejected](err); !ok || !strings.HasPrefix(r.Field, "CHAIN.AS") {
				t.Errorf("got %v, want the chain rejected", err)
			}
		})
	}
}

func TestLibraryHoleOptionsSharedAcrossGoroutines(t *testing.T) {
	milan, genoa := set("Milan"), set("Genoa")
	shared := snp.Options{
		Collateral: &simtee.KDS{Worlds: []*simtee.World{milan.machine.World, genoa.machine.World}},
		Roots:      map[string]*x509.Certificate{"Milan": milan.machine.World.ARK, "Genoa": genoa.machine.World.ARK},
	}
	var all sync.WaitGroup
	for _, s := range []*scene{milan, genoa} {
		v, err := snp.NewValidator([]snp.ReferenceValue{s.reference}, shared)
		if err != nil {
			t.Fatal(err)
		}
		e := s.issue(t)
		for range 10 {
			all.Go(func() {
				if _, err := v.Validate(t.Context(), e, reportData); err != nil {
					t.Error(err)
				}
			})
		}
	}
	all.Wait()
}

func TestLibraryHoleFrozenNow(t *testing.T) {
	s := set("Milan")
	s.kds.Alter = func(l *x509.RevocationList) { l.NextUpdate = time.Now().AddDate(100, 0, 0) }
	now := time.Now()
	s.now = func() time.Time { return now }
	v, e := s.validator(t), s.issue(t)
	if _, err := v.Validate(t.Context(), e, reportData); err != nil {
		t.Fatal(err)
	}
	now = now.AddDate(8, 0, 0) // the VCEK is good for seven years
	_, err := v.Validate(t.Context(), e, reportData)
	if r, ok := errors.AsType[*attestation.Rejected](err); !ok || r.Field != "CHAIN.VCEK" {
		t.Errorf("got %v, want CHAIN.VCEK rejected", err)
	}
}

// The library remembers an ASK and an ASVK under one name.
func TestLibraryHoleASKTakenForASVK(t *testing.T) {
	set("Milan").without().accepted(t)
	withTable(set("Milan").cloud(), "VLEK").accepted(t)
	set("Milan").without().accepted(t)
}

// The library has neither a list to ask for nor a certificate to look for where a VLEK signed: it panics.
func TestLibraryHoleRevocationOfAVLEK(t *testing.T) {
	s := set("Milan").cloud()
	s.revoke(worlds["Milan"]().ASVK)
	s.refused(t, "CHAIN.ASVK")
}

// The library takes a list past its NextUpdate when it comes fresh from the vendor.
func TestLibraryHoleStaleListFreshlyFetched(t *testing.T) {
	s := set("Milan")
	s.kds.Alter = func(l *x509.RevocationList) { l.NextUpdate = time.Now().Add(-time.Second) }
	s.refused(t, "unavailable: a current CRL of Milan")
}
