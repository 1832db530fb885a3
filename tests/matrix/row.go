package main

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
)

// A Family is the IP version that a row is tried over. Every row is tried over both unless it says otherwise.
type Family string

// The families.
const (
	IPv4 Family = "IPv4"
	IPv6 Family = "IPv6"
)

var bothFamilies = []Family{IPv4, IPv6}

// A Row is one line of the table: a state of the podVM, what a hostile network tries there, and what must not come of it.
//
// The runner boots a podVM with its guard closed, a peer beside it on a switch of their own, and applications in the podVM
// (see Lab). Then it calls Enter, makes all attempts of Blocked and Works at once, calls Run, and looks at the wire: no
// packet may have carried an application's secret in clear. At last comes the control: without the guard each attempt of
// Blocked must succeed, so that a broken lab cannot look like a closed gate. A row without Blocked makes its own controls
// in Run with Lab.Control; a row that made none is BROKEN, whatever else it found.
type Row struct {
	// Name is a few words joined by dashes, unique in the table; docs/threat-model.md refers to it.
	Name string
	// Group is the heading that the row is printed under.
	Group string
	// MustNot is what must not happen, Notices how the row would notice, Control what shows that the lab could have
	// shown it. They are for readers, in plain words.
	MustNot, Notices, Control string
	// Families are the ones that the row makes sense for; empty means both.
	Families []Family
	// Needs is what the row cannot do without; the zero value is nothing. Where it is missing the row is SKIPPED, loudly.
	Needs Need
	// Static says that the row looks at the table and sends nothing. It cannot be the only one that notices a mutation, unless
	// no traffic can.
	Static bool
	// Weakness is the name of a mutation (see mutate.go) under which this row fails. `make matrix MUTATE=1` wants to see it.
	Weakness string

	// Enter brings the podVM into the row's state. Nil is the state after boot: closed, and no proxy was ever started.
	Enter func(*Lab)
	// Blocked must come to nothing in that state, and succeed without the guard.
	Blocked []Attempt
	// Works must succeed in that state.
	Works []Attempt
	// Run is whatever does not fit into attempts.
	Run func(*Lab)
}

// An Attempt is something that a peer, or the pod, tries.
type Attempt struct {
	Name string
	// Try returns what it got that only a success can give, such as a byte of the application; "" when nothing came of it
	// within the time of wait. Attempts of one row run at the same time.
	Try func(l *Lab, wait Wait) string
}

// A Need is something that not every machine or user gives.
type Need string

// NeedRoot is real root: for sysctls that are not a network namespace's own, or that a user namespace may not write.
const NeedRoot Need = "real root (not root in a user namespace)"

// NeedIptables is iptables, legacy and nft-backed.
const NeedIptables Need = "iptables (make matrix installs it)"

// missing says whether this machine or user lacks what n stands for.
func (n Need) missing() bool {
	switch n {
	case NeedRoot:
		return !realRoot()
	case NeedIptables:
		_, err := exec.LookPath("iptables-nft-restore")
		return err != nil
	}
	return false
}

// table is every row, in the order in which they are printed.
func table() []Row {
	rows := slices.Concat(
		proxyRows(),
		tcpRows(),
		guardRows(),
		interfaceRows(),
		lockRows(),
		foreignRows(),
		packetRows(),
	)
	for i := range rows {
		if strings.Contains(rows[i].Name, "iptables-") {
			rows[i].Needs = NeedIptables
		}
	}
	return rows
}

// check reports what is wrong with the rows themselves.
func check(rows []Row) []string {
	var faults []string
	seen := map[string]bool{}
	for _, r := range rows {
		fault := func(format string, args ...any) {
			faults = append(faults, fmt.Sprintf("row %q: ", r.Name)+fmt.Sprintf(format, args...))
		}
		if r.Name == "" || strings.Trim(r.Name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			fault("want a name of lower-case words joined by dashes")
		}
		if seen[r.Name] {
			fault("there are two of that name")
		}
		seen[r.Name] = true
		for what, text := range map[string]string{
			"group": r.Group, "text of what must not happen": r.MustNot, "text of how it notices": r.Notices,
			"text of its control": r.Control, "weakness": r.Weakness,
		} {
			if text == "" {
				fault("no %s", what)
			}
		}
		if !slices.ContainsFunc(weaknesses(), func(m Mutation) bool { return m.Name == r.Weakness }) {
			fault("there is no mutation %q", r.Weakness)
		}
		if len(r.Blocked)+len(r.Works) == 0 && r.Run == nil {
			fault("it tries nothing")
		}
	}
	return faults
}

// families are the ones that r is tried over.
func (r Row) families() []Family {
	if len(r.Families) == 0 {
		return bothFamilies
	}
	return r.Families
}
