package cli

import (
	"cmp"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// rejection is how often the evidence of pods was rejected for one field, and what to do about it.
type rejection struct {
	Field string `json:"field"`
	Count int    `json:"count"`
	Hint  string `json:"hint"`
}

// advice is what to do about a rejected field, by how its name begins. The first that matches counts.
var advice = []struct {
	fields []string
	hint   string
}{
	{
		[]string{"REPORT_DATA", "REPORTDATA"},
		"the evidence was made for something else: a replayed answer, or somebody on the way",
	},
	{
		[]string{"HOST_DATA", "HOSTDATA", "MRCONFIGID", "MROWNER"},
		"the pod's initdata is not the manifest's: generate, set, then apply the YAML that generate wrote",
	},
	{
		[]string{"MEASUREMENT", "LAUNCH_DIGEST", "MRTD", "RTMR"},
		"the pod runs another image, kernel or firmware than the reference values say: portcullis measure, docs/attestation.md",
	},
	{
		[]string{"POLICY.DEBUG", "TDATTRIBUTES.DEBUG"},
		"the host can read this guest's memory: start it without debugging",
	},
	{
		[]string{"REPORTED_TCB", "LAUNCH_TCB", "COMMITTED_TCB", "CURRENT_TCB", "TCB", "MRSEAM", "SEAM", "QE_"},
		"the machine's firmware is older or other than the manifest allows: update it, or look at MinimumTCB, docs/manifest.md",
	},
	{
		[]string{"PLATFORM"},
		"the manifest has no reference values of this platform: generate --reference-values",
	},
	{
		[]string{"CHIP_ID"},
		"the machine is not among AllowedChipIDs, docs/manifest.md",
	},
	{
		[]string{"CHAIN", "SIGNATURE", "SIGNING_KEY", "CERTIFICATES", "CRL", "ROOT_CA_CRL", "PCK", "QE_REPORT"},
		"it is not signed by the vendor's hardware, or the machine's key was revoked",
	},
	{
		[]string{"POLICY", "VMPL", "TDATTRIBUTES", "XFAM", "PLATFORM_INFO"},
		"the guest was launched with other settings than the manifest wants, docs/attestation.md",
	},
}

func adviceOn(field string) string {
	for _, a := range advice {
		if slices.ContainsFunc(a.fields, func(begin string) bool { return strings.HasPrefix(field, begin) }) {
			return a.hint
		}
	}
	return "portcullis attest in the guest, then portcullis inspect-evidence --manifest, docs/attestation.md"
}

var (
	metricRejected = regexp.MustCompile(`(?m)^portcullis_evidence_rejected_total\{(?:[^}]*,)?field="([A-Za-z0-9_.]+)"[^}]*\} ([0-9.e+]+)$`)
	metricStarted  = regexp.MustCompile(`(?m)^process_start_time_seconds ([0-9.e+]+)$`)
)

// readRejections reads the Coordinator's metrics: which evidence it rejected since it started, and when that was.
func readRejections(metrics []byte) (rejections []rejection, since time.Time) {
	counts := make(map[string]float64)
	for _, m := range metricRejected.FindAllSubmatch(metrics, -1) {
		if n, err := strconv.ParseFloat(string(m[2]), 64); err == nil && n > 0 && n < 1e15 {
			counts[string(m[1])] += n
		}
	}
	for field, n := range counts {
		rejections = append(rejections, rejection{field, int(n), adviceOn(field)})
	}
	slices.SortFunc(rejections, func(a, b rejection) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Field, b.Field))
	})
	if m := metricStarted.FindSubmatch(metrics); m != nil {
		if s, err := strconv.ParseFloat(string(m[1]), 64); err == nil && s > 0 && s < 1e11 {
			since = time.Unix(int64(s), 0).UTC()
		}
	}
	return rejections, since
}
