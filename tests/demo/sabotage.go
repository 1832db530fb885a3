package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// sabotage is one thing broken on purpose, and the checks that must notice.
type sabotage struct {
	name, what string
	notice     []string
}

// sabotages covers every check of the table: a check that nothing can fail says nothing.
var sabotages = []sabotage{
	{"report", "the data owner is given YAML that was never injected", []string{"report.html shows the shop's pods by their policies"}},
	{"early-gate", "root in the guest removes the guard before the mesh starts", []string{
		"billing runs, its mesh proxy was never started",
	}},
	{"control", "the guard stays where the control wants it gone", []string{"control: the same with the guard removed by force"}},
	{"no-mesh-gate", "root in the guest removes catalog's guard", []string{"catalog has no mesh; before its Initializer"}},
	{"no-mesh-initializer", "catalog's Initializer never runs", []string{"catalog after its Initializer (--no-mesh)"}},
	{"trust", "the outside client trusts no CA, or wants another pod", []string{
		"web:8080 (#false), no client certificate, mesh CA trusted", "web:8080 (#false) through portcullis connect",
	}},
	{"metrics-port", "web's annotation does not name port 7890", []string{"web:7890 (#true), plain HTTP"}},
	{"web-plaintext", "web's annotation says web#8080#true", []string{"web:8080, plain HTTP"}},
	{"backends-plaintext", "the backends' annotations say shop#8080#true", []string{
		"billing:8080 (mTLS), plain HTTP", "cart:8080 (mTLS), plain HTTP",
		"control: billing:8080, certificate for cart-svc of this mesh",
	}},
	{"backends-no-client-auth", "the backends' annotations say shop#8080#false", []string{
		"billing:8080 (mTLS), no client certificate", "cart:8080 (mTLS), no client certificate",
	}},
	{"dns", "DNS answers with the other backend's address", []string{"web -> billing through", "web -> cart through"}},
	{"lock", "web's annotation does not lock it in", []string{"web (egress policy closed) -> catalog, past its mesh proxy"}},
	{"lock-control", "the control, too, calls from the pod that is locked in", []string{"control: billing (no egress policy) -> catalog"}},
	{"wire", "somebody talks in clear", []string{"the same, seen on the wire"}},
	{"other-mesh", "the stranger is attested by the honest Coordinator", []string{
		"billing:8080, certificate for cart-svc of another Coordinator",
	}},
	{"measurement", "the impostor boots the honest image, without a guard", []string{
		"podVM with another measurement, in the Coordinator's log", "podVM with another measurement, in its /contrast",
		"podVM with another measurement, from outside",
	}},
	{"envoy-killed", "root in the guest removes the guard as Envoy dies", []string{
		"billing:8080, Envoy killed, plain HTTP",
	}},
	{"envoy-alive", "Envoy is not killed", []string{"billing:8080, Envoy killed, mTLS"}},
	{"leak", "cart's key is in a log", []string{"secrets in logs, metrics and store"}},
	{"restart", "the Coordinator is not killed", []string{"the Coordinator killed and started again"}},
	{"owner", "the seed's owner does nothing", []string{"the Coordinator after portcullis recover"}},
	{"supervisor", "the supervisor stays stopped", []string{"billing:8080, supervisor runs again, mTLS"}},
}

func sabotageNames() string {
	var names []string
	for _, s := range sabotages {
		names = append(names, s.name)
	}
	return strings.Join(names, ", ")
}

func knownSabotage(name string) bool {
	for _, s := range sabotages {
		if s.name == name {
			return true
		}
	}
	return name == ""
}

// proveChecks runs the demo once for each sabotage and wants the named checks to fail, over both families where they have
// two.
func proveChecks() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	missed := 0
	for _, s := range sabotages {
		out, _ := exec.Command(self, "--break", s.name).CombinedOutput()
		for _, check := range s.notice {
			failed, held := 0, 0
			for line := range strings.Lines(string(out)) {
				switch {
				case strings.HasPrefix(line, "FAILED  "+check):
					failed++
				case strings.HasPrefix(line, "ok      "+check):
					held++
				}
			}
			verdict := "ok"
			if failed == 0 || held > 0 {
				verdict = "MISSED"
				missed++
			}
			fmt.Printf("%-7s %-24s %s -> %d of %d rows fail: %s\n", verdict, s.name, s.what, failed, failed+held, check)
		}
	}
	if missed > 0 {
		return fmt.Errorf("%d checks did not notice what they are for", missed)
	}
	fmt.Printf("%d sabotages, each noticed by every check that is there to notice it\n", len(sabotages))
	return nil
}

// sabotageYAML weakens the annotations that some of the sabotages speak of.
func sabotageYAML(yaml []byte, name string) []byte {
	web := `servicemesh-ingress: web#8080#false##metrics#7890#true`
	mtls := `servicemesh-ingress: ""`
	var from, to string
	switch name {
	case "metrics-port":
		from, to = web, `servicemesh-ingress: web#8080#false`
	case "web-plaintext":
		from, to = web, `servicemesh-ingress: web#8080#true##metrics#7890#true`
	case "backends-plaintext":
		from, to = mtls, `servicemesh-ingress: "shop#8080#true"`
	case "backends-no-client-auth":
		from, to = mtls, `servicemesh-ingress: "shop#8080#false"`
	case "lock":
		from, to = "servicemesh-egress-policy: closed", "servicemesh-egress-policy: open"
	default:
		return yaml
	}
	if !bytes.Contains(yaml, []byte(from)) {
		panic("shop.yaml has no annotation " + from)
	}
	return bytes.ReplaceAll(yaml, []byte(from), []byte(to))
}
