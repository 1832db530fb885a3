// Package doctor looks at a machine and says what Portcullis would miss on it, before something fails for want of it.
//
// A finding names what was looked at, what was found, what is wanted, and how to get it. What cannot be looked at, for want of
// a permission, is not fine: it is unknown, and said to be.
package doctor

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Result is what became of a check. The zero value is no result.
type Result string

// The results.
const (
	OK      Result = "ok"
	Missing Result = "missing"
	Unknown Result = "unknown" // could not be looked at
	// Optional is missing, and only some commands or setups need it.
	Optional Result = "optional"
)

// Finding is one check.
type Finding struct {
	Check  string `json:"check"`
	Result Result `json:"result"`
	Found  string `json:"found"`
	Wanted string `json:"wanted"`
	// Get is how to get it, where it is missing.
	Get string `json:"howToGet,omitempty"`
}

// Machine is what the checks look at. Tests look at a machine that lacks something.
type Machine struct {
	// Root is the folder that stands for /.
	Root string
	// Path are the folders of programs, Root not among them.
	Path []string
	// Envoy is the program that PORTCULLIS_ENVOY names, empty where it names none.
	Envoy string
	// Cache is where this user's programs keep what they can fetch again, empty where there is no such place.
	Cache string
	// UID is who asks.
	UID int
	Now time.Time
	// Released is a time before which this release did not exist: a clock that shows an earlier one is wrong.
	Released time.Time
	// Version asks a program for its version.
	Version func(program string, args ...string) (string, error)
}

// Worst is what all findings come to: Missing before Unknown before OK.
func Worst(findings []Finding) Result {
	for _, r := range []Result{Missing, Unknown} {
		if slices.ContainsFunc(findings, func(f Finding) bool { return f.Result == r }) {
			return r
		}
	}
	return OK
}

func (m *Machine) path(p string) string { return filepath.Join(m.Root, p) }

func (m *Machine) exists(p string) bool {
	_, err := os.Stat(m.path(p))
	return err == nil
}

func (m *Machine) text(p string) string {
	b, _ := os.ReadFile(m.path(p))
	return strings.TrimSpace(string(b))
}

// find looks for a program.
func (m *Machine) find(name string) string {
	for _, folder := range m.Path {
		file := filepath.Join(folder, name)
		if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return file
		}
	}
	return ""
}

// program is the check for one.
func (m *Machine) program(name, wanted, get string, otherwise Result) Finding {
	f := Finding{Check: name, Result: OK, Found: m.find(name), Wanted: wanted}
	if f.Found == "" {
		f.Result, f.Found, f.Get = otherwise, "not in PATH", get
	}
	return f
}

// clock is the check that time has not stood still.
func (m *Machine) clock() Finding {
	f := Finding{
		Check: "clock", Result: OK, Found: m.Now.UTC().Format(time.DateTime + " UTC"),
		Wanted: "later than " + m.Released.Format(time.DateOnly) + ", this release's",
	}
	if m.Now.Before(m.Released) {
		f.Result, f.Get = Missing, "set the clock: certificates are not in their time (timedatectl set-ntp true)"
	}
	return f
}

// ClockSkew compares this machine's clock with a Coordinator's, as its answer's Date header showed it.
func ClockSkew(here, there time.Time) Finding {
	const most = 5 * time.Minute // certificates are backdated by this
	f := Finding{Check: "clock beside the Coordinator's", Wanted: "at most " + most.String() + " apart"}
	if there.IsZero() {
		f.Result, f.Found, f.Get = Unknown, "the Coordinator shows no time", "is a proxy in between that takes the Date header away?"
		return f
	}
	skew := here.Sub(there).Round(time.Second)
	f.Result, f.Found = OK, skew.Abs().String()+" ahead"
	if skew < 0 {
		f.Found = skew.Abs().String() + " behind"
	}
	if skew.Abs() > most {
		f.Result, f.Get = Missing, "set this machine's clock, or look at the Coordinator's"
	}
	return f
}

// envoy is the check for the program that meshproxy supervises.
func (m *Machine) envoy(wanted string, otherwise Result) Finding {
	f := Finding{Check: "Envoy", Result: OK, Wanted: wanted, Found: cmp.Or(m.Envoy, m.find("envoy"))}
	get := "it is in the mesh proxy's image; in a source tree make envoy fetches it"
	if f.Found == "" {
		f.Result, f.Found, f.Get = otherwise, "neither in PORTCULLIS_ENVOY nor in PATH", get
		return f
	}
	version, err := m.Version(f.Found, "--version")
	if err != nil {
		f.Result, f.Found, f.Get = otherwise, f.Found+" does not run: "+err.Error(), get
		return f
	}
	number := envoyVersion.FindString(version)
	f.Found += " " + number
	if number != testedEnvoy {
		f.Result, f.Get = otherwise, "only "+testedEnvoy+" was tried: "+get
	}
	return f
}

// because says in few words why a file could not be used.
func because(err error) string {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err.Error()
	}
	return err.Error()
}
