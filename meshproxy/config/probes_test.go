package config_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"portcullis.dev/portcullis/meshproxy/config"
)

func TestParseProbes(t *testing.T) {
	for _, c := range []struct {
		value string
		want  []config.Probe
	}{
		{"", nil},
		{"####", nil},
		{"web/liveness#http://:8080/healthz?full=1#1s", []config.Probe{{
			Container: "web", Kind: config.Liveness, Check: config.CheckHTTP, Port: 8080, Target: "/healthz?full=1", Timeout: time.Second,
		}}},
		{"web/readiness#https://:443/#3600s#Host:shop.example#X-A:50%25 %231#X-A:", []config.Probe{{
			Container: "web", Kind: config.Readiness, Check: config.CheckHTTPS, Port: 443, Target: "/", Timeout: time.Hour,
			Headers: []config.Header{{Name: "Host", Value: "shop.example"}, {Name: "X-A", Value: "50% #1"}, {Name: "X-A"}},
		}}},
		{"db/startup#tcp://:5432#2s##api/liveness#grpc://:9000#1s##api/readiness#grpc://:9000/a/b%23%C3%A9#1s", []config.Probe{
			{Container: "db", Kind: config.Startup, Check: config.CheckTCP, Port: 5432, Timeout: 2 * time.Second},
			{Container: "api", Kind: config.Liveness, Check: config.CheckGRPC, Port: 9000, Timeout: time.Second},
			{Container: "api", Kind: config.Readiness, Check: config.CheckGRPC, Port: 9000, Service: "a/b#é", Timeout: time.Second},
		}},
	} {
		got, err := config.Values{Probes: c.value}.Parse()
		if err != nil {
			t.Errorf("%q: %v", c.value, err)
			continue
		}
		if diff := cmp.Diff(c.want, got.Probes, comparing); diff != "" {
			t.Errorf("%q: want (-), got (+):\n%s", c.value, diff)
		}
		if text := got.ProbesString(); text != c.value && strings.Trim(c.value, "#") != "" {
			t.Errorf("%q is written as %q", c.value, text)
		}
	}
}

func TestProbeFaults(t *testing.T) {
	const (
		wantCheck   = "want http://:port/path, https://:port/path, tcp://:port or grpc://:port[/service]"
		wantTarget  = "want a path that begins with /, and perhaps a query, in printable ASCII with %XX for the rest"
		wantEscaped = "want a value in printable ASCII, with %XX for every other byte, for # and for %, and for nothing else"
	)
	for _, c := range []struct {
		ingress, value string
		want           []string // behind the entry
	}{
		{"", "web/liveness#tcp://:80", []string{": it has 2 fields: want container/liveness|readiness|startup#check#timeout[#header:value]..."}},
		{"", "web#tcp://:80#1s", []string{`: probe: "web" has no kind of probe: want container/liveness`}},
		{"", "web/Liveness#tcp://:80#1s", []string{`: probe: "web/Liveness" has no kind`}},
		{"", "web/liveness/x#tcp://:80#1s", []string{`: probe: "web/liveness/x" has no kind`}},
		{"", "/liveness#tcp://:80#1s", []string{`: probe: "" is no container's name`}},
		{"", "../liveness#tcp://:80#1s", []string{`: probe: ".." is no container's name`}},
		{"", "a-/liveness#tcp://:80#1s", []string{`: probe: "a-" is no container's name`}},
		{"", "A/liveness#tcp://:80#1s", []string{`: probe: "A" is no container's name`}},
		{"", strings.Repeat("a", 64) + "/liveness#tcp://:80#1s", []string{": probe: "}},
		{"", "a/liveness#tcp://:80#1s##a/liveness#tcp://:81#1s", []string{`: probe: "a/liveness" is already in entry 1: want each probe once`}},
		{"", "a/liveness#udp://:80#1s", []string{`: check: "udp://:80" is none: ` + wantCheck}},
		{"", "a/liveness#http://10.0.0.1:80/#1s", []string{`: check: "http://10.0.0.1:80/" is none: ` + wantCheck}},
		{"", "a/liveness#tcp://:080#1s", []string{`: check: "080" is not a port`}},
		{"", "a/liveness#tcp://:15021#1s", []string{": check: port 15021 is one of the proxy's own: want a port outside 15000-15099"}},
		{"", "a/liveness#tcp://:80/#1s", []string{`: check: "/" cannot be asked for over tcp`}},
		{"", "a/liveness#http://:80#1s", []string{`: check: "" is not what a request line can say: ` + wantTarget}},
		{"", "a/liveness#http://:80/a b#1s", []string{`: check: "/a b" is not what`}},
		{"", "a/liveness#http://:80/?a b#1s", []string{`: check: "/?a b" is not what`}},
		{"", "a/liveness#http://:80/?é#1s", []string{`: check: "/?é" is not what`}},
		{"", "a/liveness#http://:80/\r\nX: y#1s", []string{": check: "}},
		{"", "a/liveness#http://:80/%#1s", []string{`: check: "/%" is not what`}},
		{"", "a/liveness#grpc://:80/#1s", []string{`: check: "" is none: want a service's name in printable ASCII`}},
		{"", "a/liveness#grpc://:80/%FF#1s", []string{`: check: "%FF" is none`}},
		{"", "a/liveness#grpc://:80/%61#1s", []string{`: check: "%61" is none`}},
		{"", "a/liveness#grpc://:80/é#1s", []string{`: check: "é" is none`}},
		{"", "a/liveness#tcp://:80#1", []string{`: timeout: "1" is none: want whole seconds from 1s to 3600s`}},
		{"", "a/liveness#tcp://:80#0s", []string{`: timeout: "0s" is none`}},
		{"", "a/liveness#tcp://:80#01s", []string{`: timeout: "01s" is none`}},
		{"", "a/liveness#tcp://:80#+1s", []string{`: timeout: "+1s" is none`}},
		{"", "a/liveness#tcp://:80#3601s", []string{`: timeout: "3601s" is none`}},
		{"", "a/liveness#tcp://:80#1m", []string{`: timeout: "1m" is none`}},
		{"", "a/liveness#tcp://:80#1s#a:b", []string{": header: there are no headers over tcp: want none"}},
		{"", "a/liveness#http://:80/#1s#ab", []string{`: header: "ab" has no header's name: want name:value`}},
		{"", "a/liveness#http://:80/#1s#:b", []string{`: header: ":b" has no header's name`}},
		{"", "a/liveness#http://:80/#1s#a :b", []string{`: header: "a :b" has no header's name`}},
		{"", "a/liveness#http://:80/#1s#a:b%0D%0Ac:d", []string{": header: no header can carry the value of a: want a value without control characters"}},
		{"", "a/liveness#http://:80/#1s#a:b%2fc", []string{": header: the value of a is not: " + wantEscaped}},
		{"", "a/liveness#http://:80/#1s#a:100%", []string{": header: the value of a is not: " + wantEscaped}},
		{"CLOSED", "a/liveness#tcp://:80#1s", []string{": ingress CLOSED lets nothing in, and no probe either: want another ingress value, or no probes"}},
		{"DISABLED", "a/liveness#tcp://:80#1s", []string{": ingress DISABLED intercepts nothing, so that kubelet reaches the application itself: want no probes"}},
		{"", "a#ftp://:1#x##b/startup#tcp://:0#2s", []string{": probe: ", ": check: ", ": timeout: ", ": check: "}},
	} {
		got, err := config.Values{Ingress: c.ingress, Probes: c.value}.Parse()
		e, ok := errors.AsType[*config.Error](err)
		if !ok || got != nil {
			t.Errorf("%q gives %v, %v", c.value, got, err)
			continue
		}
		if len(e.Faults) != len(c.want) {
			t.Errorf("%q has %d faults, want %d:\n%v", c.value, len(e.Faults), len(c.want), err)
			continue
		}
		for i, f := range e.Faults {
			if got := f.Error(); f.Value != "probes" || !strings.Contains(got, c.want[i]) || f.Want == "" {
				t.Errorf("%q: %s, want %s", c.value, got, c.want[i])
			}
		}
	}
}

// The probe port is open when there are probes, and only then.
func TestGuardPortsHaveTheProbePort(t *testing.T) {
	for value, want := range map[string][]uint16{"": {7, 20000}, "a/liveness#tcp://:80#1s": {7, 15021, 20000}} {
		c, err := config.Values{Ingress: "a#7#true##b#20000#true", Probes: value}.Parse()
		if err != nil {
			t.Fatal(err)
		}
		if got, _, _ := c.GuardPorts(); !cmp.Equal(got, want) {
			t.Errorf("with the probes %q plaintext ports are %v, want %v", value, got, want)
		}
	}
	for _, mode := range []config.Mode{config.Closed, config.Disabled} {
		c := config.Config{Mode: mode, Probes: []config.Probe{{}}}
		if got, _, _ := c.GuardPorts(); len(got) > 0 {
			t.Errorf("in mode %d plaintext ports are %v", mode, got)
		}
	}
}

func TestProbesAreReadAsWritten(t *testing.T) {
	anyText := rapid.OneOf(rapid.String(), rapid.StringMatching(`[ -~]{0,12}`))
	rapid.Check(t, func(t *rapid.T) {
		var probes []config.Probe
		for _, id := range rapid.SliceOfNDistinct(rapid.StringMatching(`[a-z]([a-z0-9-]{0,5}[a-z0-9])?`), 0, 4, rapid.ID).Draw(t, "containers") {
			p := config.Probe{
				Container: id,
				Kind:      config.ProbeKind(rapid.IntRange(int(config.Liveness), int(config.Startup)).Draw(t, "kind")),
				Check:     config.Check(rapid.IntRange(int(config.CheckHTTP), int(config.CheckGRPC)).Draw(t, "check")),
				Port:      config.Port(rapid.IntRange(1, 14999).Draw(t, "port")),
				Timeout:   time.Duration(rapid.IntRange(1, 3600).Draw(t, "timeout")) * time.Second,
			}
			switch p.Check {
			case config.CheckHTTP, config.CheckHTTPS:
				p.Target = "/" + rapid.StringMatching(`([a-z0-9._~&=+-]|%[0-9A-F]{2}|/){0,20}(\?([a-z/?]|%[0-9A-F]{2}){0,9})?`).Draw(t, "target")
				for _, value := range rapid.SliceOfN(anyText, 0, 3).Draw(t, "headers") {
					if !strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
						p.Headers = append(p.Headers, config.Header{Name: "X-A", Value: value})
					}
				}
			case config.CheckGRPC:
				p.Service = anyText.Draw(t, "service")
			}
			probes = append(probes, p)
		}
		value := (&config.Config{Probes: probes}).ProbesString()
		c, err := config.Values{Probes: value}.Parse()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(probes, c.Probes, comparing); diff != "" {
			t.Fatalf("%q reads differently:\n%s", value, diff)
		}
	})
}

func FuzzProbes(f *testing.F) {
	f.Add("web/liveness#http://:8080/healthz?full=1#1s##web/readiness#https://:443/#3600s#Host:shop.example#X-A:50%25 %231")
	f.Add("db/startup#tcp://:5432#2s##api/liveness#grpc://:9000/a%23#1s")
	f.Add("a/b#c://:d#e#f:g###")
	f.Fuzz(func(t *testing.T, value string) {
		c, err := config.Values{Probes: value}.Parse()
		if err != nil {
			return
		}
		for _, p := range c.Probes {
			if p.Port == 0 || p.Port.Reserved() || p.Timeout < time.Second || strings.ContainsAny(p.Target, " \r\n#") {
				t.Fatalf("%q asks for %+v", value, p)
			}
		}
		again, err := config.Values{Probes: c.ProbesString()}.Parse()
		if err != nil {
			t.Fatalf("%q does not parse: %v", c.ProbesString(), err)
		}
		if diff := cmp.Diff(c.Probes, again.Probes, comparing); diff != "" {
			t.Fatalf("%q reads differently:\n%s", c.ProbesString(), diff)
		}
	})
}
