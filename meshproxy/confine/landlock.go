package confine

import (
	"debug/elf"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
)

// system is what a C++ program with a DNS resolver reads: the loader's cache and libraries, the resolver's configuration,
// and the number of processors. Nothing in there is secret.
var system = []string{"/etc", "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/sys/devices/system/cpu"}

// For are the limits of a program that reads the files in read beside what every program reads.
func For(program string, read ...string) (Limits, error) {
	l := Limits{Program: program, Read: append(read, system...)}
	// Where resolv.conf is kept by another program, it is a link to a file that is replaced, not rewritten: a rule for the
	// file would be one for the file of now.
	if file, err := filepath.EvalSymlinks("/etc/resolv.conf"); err == nil {
		l.Read = append(l.Read, filepath.Dir(file))
	}
	binary, err := elf.Open(program)
	if err != nil {
		return Limits{}, fmt.Errorf("read how %s is linked: %w", program, err)
	}
	defer binary.Close()
	for _, p := range binary.Progs {
		if p.Type == elf.PT_INTERP {
			text, err := io.ReadAll(io.LimitReader(p.Open(), 4<<10))
			if err != nil {
				return Limits{}, fmt.Errorf("read which loader %s wants: %w", program, err)
			}
			l.Loader = strings.TrimRight(string(text), "\x00")
			l.Read = append(l.Read, filepath.Dir(l.Loader))
		}
	}
	for _, tag := range []elf.DynTag{elf.DT_RUNPATH, elf.DT_RPATH} {
		lists, _ := binary.DynString(tag) // fails for a program that is linked statically
		for _, list := range lists {
			for _, dir := range filepath.SplitList(list) {
				l.Read = append(l.Read, strings.NewReplacer("$ORIGIN", filepath.Dir(program)).Replace(dir))
			}
		}
	}
	return l, nil
}

// restrict confines the process, as far as the kernel's version of Landlock goes.
func (l Limits) restrict() error {
	if landlockVersion() == 0 {
		return nil
	}
	const (
		read    = ll.AccessFSReadFile
		execute = ll.AccessFSExecute | ll.AccessFSReadFile
		sockets = ll.AccessFSMakeSock | ll.AccessFSRemoveFile
	)
	rules := []landlock.Rule{
		landlock.PathAccess(execute, l.Program),
		landlock.PathAccess(read, l.Read...).IgnoreIfMissing(),
	}
	if l.Loader != "" {
		rules = append(rules, landlock.PathAccess(execute, l.Loader))
	}
	if l.Sockets != "" {
		rules = append(rules, landlock.PathAccess(sockets, l.Sockets))
	}
	for _, port := range l.Listen {
		rules = append(rules, landlock.BindTCP(port))
	}
	// All that V9 knows of files, but of the network only what is bound: Envoy connects wherever its configuration and its
	// peers say, and the guard is what judges that.
	config := landlock.MustConfig(landlock.V9.HandledAccessFS, landlock.AccessNetSet(ll.AccessNetBindTCP), landlock.V9.Scoped)
	return config.BestEffort().Restrict(rules...)
}

func landlockVersion() int {
	version, err := ll.LandlockGetABIVersion()
	if err != nil { // not built in, or not switched on
		return 0
	}
	return version
}
