package sevsnp

import (
	"encoding/binary"
	"fmt"

	"github.com/google/go-sev-guest/abi"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/uuid"
)

// MaxTable bounds a certificate table, and so every certificate, in bytes: three certificates are about 5 KiB.
const MaxTable = 64 << 10

// parseTable reads a certificate table (GHCB specification, SNP extended guest request): entries of GUID, u32 offset and
// u32 length, ended by an entry of zeros. The library's own reader adds offset and length in 32 bits and allocates
// before it looks, so that a table of 48 bytes makes it take 4 GiB. A host may leave the whole table out.
//
// Its entry for the ASK holds the ASVK where a VLEK signs.
func parseTable(table []byte) (*spb.CertificateChain, error) {
	if len(table) > MaxTable {
		return nil, fmt.Errorf("a certificate table of %d bytes, want at most %d", len(table), MaxTable)
	}
	chain := &spb.CertificateChain{}
	if len(table) == 0 {
		return chain, nil
	}
	known := map[uuid.UUID]*[]byte{
		uuid.MustParse(abi.VcekGUID): &chain.VcekCert,
		uuid.MustParse(abi.VlekGUID): &chain.VlekCert,
		uuid.MustParse(abi.AskGUID):  &chain.AskCert,
		uuid.MustParse(abi.ArkGUID):  &chain.ArkCert,
	}
	for at := 0; ; at += abi.CertTableEntrySize {
		if len(table)-at < abi.CertTableEntrySize {
			return nil, fmt.Errorf("a certificate table of %d bytes that does not end", len(table))
		}
		entry := table[at : at+abi.CertTableEntrySize]
		if [abi.CertTableEntrySize]byte(entry) == [abi.CertTableEntrySize]byte{} {
			return chain, nil
		}
		id := uuid.UUID(entry[:abi.GUIDSize])
		offset := uint64(binary.LittleEndian.Uint32(entry[abi.GUIDSize:]))
		length := uint64(binary.LittleEndian.Uint32(entry[abi.GUIDSize+4:]))
		if offset+length > uint64(len(table)) {
			return nil, fmt.Errorf("entry %s of the certificate table ends at %d of %d bytes", id, offset+length, len(table))
		}
		to, ok := known[id]
		if !ok {
			continue // other entries are the hypervisor's affair
		}
		if len(*to) > 0 {
			return nil, fmt.Errorf("the certificate table names %s twice", id)
		}
		*to = table[offset : offset+length]
	}
}
