package report_test

import (
	"testing"

	"portcullis.dev/portcullis/cli/report"
)

func hostile(t *testing.T) *report.Report { return scene{yaml: shop()}.report(t) }
