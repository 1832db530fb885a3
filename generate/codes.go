package generate

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// Code names a kind of fault or warning, for ever: it is what people look up, and what they accept in their YAML.
type Code string

// The codes. PC10 is the file, PC11 annotations, PC12 probes, PC13 what a pod's own specification does to the gate, PC14
// identities, PC15 policies and the manifest.
const (
	codeYAML   Code = "PC1001"
	codeStyle  Code = "PC1002"
	codeEdited Code = "PC1003"
	codeOurs   Code = "PC1004"
	codeTwice  Code = "PC1005"
	codeNoName Code = "PC1006"

	codeMesh          Code = "PC1101"
	codeNotString     Code = "PC1102"
	codeTwoValues     Code = "PC1103"
	codeUnknown       Code = "PC1104"
	codeNotOffered    Code = "PC1105"
	codeForeign       Code = "PC1106"
	codeValue         Code = "PC1107"
	codeContradiction Code = "PC1108"
	codeDisabled      Code = "PC1109"
	codeAcceptUnknown Code = "PC1110"
	codeAcceptUnused  Code = "PC1111"

	codeProbe       Code = "PC1201"
	codeProbeHost   Code = "PC1202"
	codeProbeClosed Code = "PC1203"
	codeProbeHTTPS  Code = "PC1204"
	codeHook        Code = "PC1205"

	codeHostNetwork Code = "PC1301"
	codePowers      Code = "PC1302"
	codeNetRaw      Code = "PC1303"
	codePastLock    Code = "PC1304"
	codeMount       Code = "PC1305"
	codeHostPath    Code = "PC1306"
	codeSharePID    Code = "PC1307"
	codeHostPID     Code = "PC1308"
	codeEscalation  Code = "PC1309"
	codeHostPort    Code = "PC1310"
	codeReserved    Code = "PC1311"
	codeDropped     Code = "PC1312"
	codeVariable    Code = "PC1313"
	codeMemory      Code = "PC1314"
	codeEphemeral   Code = "PC1315"
	codeRuntime     Code = "PC1316"
	codeOutside     Code = "PC1317"

	codeSharedService Code = "PC1401"
	codeSharedName    Code = "PC1402"
	codeBadName       Code = "PC1403"
	codeNobody        Code = "PC1404"
	codeReplicas      Code = "PC1405"

	codeOneHash  Code = "PC1501"
	codePin      Code = "PC1502"
	codeUnpinned Code = "PC1503"
	codePolicy   Code = "PC1504"
	codeConflict Code = "PC1505"
	codeGone     Code = "PC1506"
	codeLoosePin Code = "PC1507"
)

// Explanation says what a code is about.
type Explanation struct {
	Code  Code
	Title string
	// Warning is what is reported and does not keep generate from writing.
	Warning bool
	// Acceptable is what an annotation may accept. Of errors those that a person may have a good reason for.
	Acceptable bool
	// Why says what could happen, Do what to do about it.
	Why, Do string
	// Example is YAML that is reported so, as far as few lines can show it.
	Example string
}

// Explain looks a code up, in any case. False for one that does not exist.
func Explain(code string) (Explanation, bool) {
	i := slices.IndexFunc(explanations, func(e Explanation) bool { return strings.EqualFold(string(e.Code), code) })
	if i < 0 {
		return Explanation{}, false
	}
	return explanations[i], true
}

// byCode is explanations for those who ask often.
var byCode = func() map[Code]Explanation {
	m := make(map[Code]Explanation, len(explanations))
	for _, e := range explanations {
		m[e.Code] = e
	}
	return m
}()

// Explanations are those of all codes, in their order.
func Explanations() []Explanation { return slices.Clone(explanations) }

// Kind says what becomes of a run that reports the code.
func (e Explanation) Kind() string {
	kind := "error"
	if e.Warning {
		kind = "warning"
	}
	if e.Acceptable {
		kind += ", can be accepted"
	}
	return kind
}

// WriteCodes writes docs/codes.md.
func WriteCodes(w io.Writer) error {
	if _, err := io.WriteString(w, codesHead); err != nil {
		return err
	}
	for _, e := range explanations {
		if _, err := fmt.Fprintf(w, "| [%s](#%s) | %s | %s |\n", e.Code, strings.ToLower(string(e.Code)), e.Title, e.Kind()); err != nil {
			return err
		}
	}
	for _, e := range explanations {
		_, err := fmt.Fprintf(w, "\n## %s\n\n%s (%s).\n\n%s\n\nWhat to do: %s\n", e.Code, e.Title, e.Kind(), e.Why, e.Do)
		if err == nil && e.Example != "" {
			_, err = fmt.Fprintf(w, "\n    %s\n", strings.ReplaceAll(e.Example, "\n", "\n    "))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

const codesHead = `# Codes

Every error and warning of ` + "`portcullis generate`" + ` and ` + "`portcullis lint`" + ` about a file has its place and a code that stays:

    shop.yaml:12:5: PC1302: container web of Deployment default/web asks for NET_ADMIN, ...

` + "`portcullis explain PC1302`" + ` prints what stands here. This page is made of generate/codes.go.

An **error** is what could open the gate, leak, or leave a person with a mesh that they only believe in: then nothing is written. A
**warning** is what will not work as it was probably meant, or weakens something beside the gate.

What was considered can be accepted, in the annotation ` + "`portcullis.dev/accept`" + ` of the object or of its pod template:

    metadata:
      annotations:
        portcullis.dev/accept: PC1302,PC1314

That silences the codes for this object only. A code that does not exist or cannot be accepted, and one that nothing in the object
is reported under, are warnings of their own, so that no acceptance outlives its reason.

Not reported, after consideration: images by tag (what pins an image is the pod's measured policy, never the YAML, which the host
may change), service account tokens (the host issues them and knows them anyway), and TCP ports that no ingress entry names (they ask
for a certificate of the mesh; ` + "`portcullis lint`" + ` says so).

| code | what | |
|---|---|---|
`
