package measure

import (
	"bytes"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
)

// maxEventLog bounds an event log, in bytes. Firmware reserves 64 KiB.
const maxEventLog = 16 << 20

// Event is one entry of an event log.
type Event struct {
	// RTMR is the register that Digest was extended into, 0 to 3, or -1 for an entry that was extended into none.
	RTMR int
	// Type is the kind of event (TCG PC Client Platform Firmware Profile, table "Events").
	Type   uint32
	Digest [sha512.Size384]byte
	// Data describes what was measured. Nothing proves it but a Digest of it, of kinds that are a digest of their data.
	Data []byte
}

// Numbers of the TCG PC Client Platform Firmware Profile, and of the UEFI specification, section 38.4.1: the CC measurement
// register 0 is MRTD, and 1 to 4 are RTMR0 to RTMR3.
const (
	eventNoAction = 3
	algorithmSHA1 = 0x4
	algorithm256  = 0xb
	algorithm384  = 0xc
	algorithm512  = 0xd
	firstRTMR     = 1
)

var digestSizes = map[uint16]int{algorithmSHA1: 20, algorithm256: 32, algorithm384: 48, algorithm512: 64}

// RTMRs computes the run-time measurement registers from the event log that a TD's firmware and kernel wrote, the contents of
// ACPI's CCEL table. The log is the guest's word: that its RTMRs are those of a quote shows that it is complete, and whether
// they are those of the right software shows only a look at each event.
func RTMRs(log []byte) (rtmrs [4][sha512.Size384]byte, events []Event, err error) {
	if len(log) > maxEventLog {
		return rtmrs, nil, fmt.Errorf("an event log of %d bytes, want at most %d", len(log), maxEventLog)
	}
	r := &reader{b: log}
	if err := specification(r); err != nil {
		return rtmrs, nil, err
	}
	for !r.ends() {
		event, err := nextEvent(r)
		if err != nil {
			return rtmrs, nil, fmt.Errorf("event %d of the log: %w", len(events), err)
		}
		events = append(events, event)
		if event.RTMR < 0 {
			continue
		}
		register := &rtmrs[event.RTMR]
		*register = sha512.Sum384(append(register[:], event.Digest[:]...))
	}
	if len(events) == 0 {
		return rtmrs, nil, errors.New("the event log has no events")
	}
	return rtmrs, events, nil
}

// specification reads the first entry, in the format of before there were several algorithms.
func specification(r *reader) error {
	index, kind := r.u32(), r.u32()
	r.take(20)
	spec := r.take(r.u32())
	if r.short || index > firstRTMR || kind != eventNoAction || !bytes.HasPrefix(spec, []byte("Spec ID Event03\x00")) {
		return errors.New("this is no event log: it does not begin with Spec ID Event03")
	}
	return nil
}

func nextEvent(r *reader) (Event, error) {
	register, kind, n := r.u32(), r.u32(), r.u32()
	event := Event{RTMR: int(register) - firstRTMR, Type: kind}
	found := false
	for range n {
		algorithm := r.u16()
		size, known := digestSizes[algorithm]
		if r.short {
			break
		}
		if !known {
			return event, fmt.Errorf("a digest of algorithm %#x, which is unknown", algorithm)
		}
		digest := r.take(uint32(size))
		if algorithm == algorithm384 && !r.short {
			event.Digest, found = [sha512.Size384]byte(digest), true
		}
	}
	event.Data = bytes.Clone(r.take(r.u32()))
	switch {
	case r.short:
		return event, errors.New("it is cut off")
	case kind == eventNoAction:
		event.RTMR = -1
	case register < firstRTMR || register > firstRTMR+3:
		return event, fmt.Errorf("it was measured into register %d, want %d to %d", register, firstRTMR, firstRTMR+3)
	case !found:
		return event, errors.New("it has no SHA-384 digest")
	}
	return event, nil
}

// reader takes numbers off the front of b. One that is not there in full is 0 and marks the reader as short.
type reader struct {
	b     []byte
	short bool
}

func (r *reader) take(n uint32) []byte {
	if r.short || uint64(n) > uint64(len(r.b)) {
		r.short = true
		return nil
	}
	field := r.b[:n]
	r.b = r.b[n:]
	return field
}

func (r *reader) u16() uint16 {
	if b := r.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if b := r.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

// ends says whether nothing but the reserved room is left, which firmware fills with ones and some with zeros.
func (r *reader) ends() bool {
	return len(bytes.Trim(r.b, "\xff")) == 0 || len(bytes.Trim(r.b, "\x00")) == 0
}
