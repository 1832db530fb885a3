package main

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The superblock of a verity device, as veritysetup writes it (cryptsetup, docs: "DMVerity", on-disk format version 1).
const (
	superblockSize = 512
	blockSize      = 4096
	maxSalt        = 256
)

type superblock struct {
	dataBlocks uint64
	salt       []byte
}

// parseSuperblock reads what the host's disk says of the tree of hashes. Nothing in it is believed for its own sake: another
// salt or another number of blocks is another root hash. What would be another algorithm is refused.
func parseSuperblock(b []byte) (superblock, error) {
	var raw struct {
		Signature                    [8]byte
		Version, HashType            uint32
		UUID                         [16]byte
		Algorithm                    [32]byte
		DataBlockSize, HashBlockSize uint32
		DataBlocks                   uint64
		SaltSize                     uint16
		_                            [6]byte
		Salt                         [maxSalt]byte
	}
	if _, err := binary.Decode(b, binary.LittleEndian, &raw); err != nil {
		return superblock{}, errors.New("the verity superblock is cut off")
	}
	algorithm := string(bytes.TrimRight(raw.Algorithm[:], "\x00"))
	switch {
	case string(raw.Signature[:]) != "verity\x00\x00":
		return superblock{}, errors.New("the second partition has no verity superblock")
	case raw.Version != 1 || raw.HashType != 1:
		return superblock{}, fmt.Errorf("verity of version %d, type %d: want 1, 1", raw.Version, raw.HashType)
	case algorithm != "sha256":
		return superblock{}, fmt.Errorf("verity with %q: want sha256", algorithm)
	case raw.DataBlockSize != blockSize || raw.HashBlockSize != blockSize:
		return superblock{}, fmt.Errorf("verity with blocks of %d and %d bytes: want %d", raw.DataBlockSize, raw.HashBlockSize, blockSize)
	case raw.DataBlocks == 0 || raw.DataBlocks > 1<<40/blockSize:
		return superblock{}, fmt.Errorf("verity over %d blocks", raw.DataBlocks)
	case raw.SaltSize == 0 || raw.SaltSize > maxSalt:
		return superblock{}, fmt.Errorf("verity with a salt of %d bytes", raw.SaltSize)
	}
	return superblock{dataBlocks: raw.DataBlocks, salt: raw.Salt[:raw.SaltSize]}, nil
}

// table is the device's line for device-mapper (Linux, admin-guide/device-mapper/verity). The hashes follow the superblock's
// block; a block that is not what was hashed ends the machine.
func (s superblock) table(data, hashes, rootHash string) string {
	return fmt.Sprintf("1 %s %s %d %d %d 1 sha256 %s %s 1 panic_on_corruption",
		data, hashes, blockSize, blockSize, s.dataBlocks, rootHash, hex.EncodeToString(s.salt))
}

// The interface of device-mapper (Linux, uapi/linux/dm-ioctl.h).
const (
	dmControl    = "/dev/mapper/control"
	dmCreate     = 0xc138fd03
	dmSuspend    = 0xc138fd06 // which also resumes
	dmLoad       = 0xc138fd09
	dmReadOnly   = 1 << 0
	dmHeaderSize = 312
	sectorSize   = 512
)

type dmHeader struct {
	Version             [3]uint32
	DataSize, DataStart uint32
	TargetCount         uint32
	OpenCount           int32
	Flags, EventNr, _   uint32
	Dev                 uint64
	Name                [128]byte
	UUID                [129]byte
	_                   [7]byte
}

type dmTarget struct {
	SectorStart, Length uint64
	Status              int32
	Next                uint32
	Type                [16]byte
}

// createVerity makes the read-only device name from a table, and returns its path.
func createVerity(name, table string, blocks uint64) (string, error) {
	control, err := os.OpenFile(dmControl, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer control.Close()
	header := dmHeader{Version: [3]uint32{4, 0, 0}, DataStart: dmHeaderSize, Flags: dmReadOnly}
	copy(header.Name[:], name)

	created, err := dm(control, dmCreate, header, nil)
	if err != nil {
		return "", fmt.Errorf("create the verity device: %w", err)
	}
	target := dmTarget{Length: blocks * blockSize / sectorSize}
	copy(target.Type[:], "verity")
	var payload bytes.Buffer
	binary.Write(&payload, binary.NativeEndian, target)
	payload.WriteString(table)
	payload.Write(make([]byte, 8-payload.Len()%8)) // ended by a zero, and aligned
	header.TargetCount = 1
	if _, err := dm(control, dmLoad, header, payload.Bytes()); err != nil {
		return "", fmt.Errorf("dm-verity refused the root: %w", err)
	}
	header.TargetCount = 0
	if _, err := dm(control, dmSuspend, header, nil); err != nil {
		return "", fmt.Errorf("activate the verity device: %w", err)
	}
	return fmt.Sprintf("/dev/dm-%d", unix.Minor(created.Dev)), nil
}

func dm(control *os.File, request uintptr, header dmHeader, payload []byte) (dmHeader, error) {
	header.DataSize = uint32(dmHeaderSize + len(payload))
	var b bytes.Buffer
	binary.Write(&b, binary.NativeEndian, header)
	b.Write(payload)
	buffer := b.Bytes()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), request, uintptr(unsafe.Pointer(&buffer[0]))); errno != 0 {
		return dmHeader{}, errno
	}
	var answer dmHeader
	_, err := binary.Decode(buffer, binary.NativeEndian, &answer)
	return answer, err
}
