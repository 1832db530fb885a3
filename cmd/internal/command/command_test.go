package command

import "testing"

func TestATerminalObeysNothingInAnError(t *testing.T) {
	for text, want := range map[string]string{
		"a\nb\tc é 城":            "a\nb\tc é 城",
		"\x1b[2Jgone\r":          "\ufffd[2Jgone\ufffd",
		"evil\u202etxt\u009bdef": "evil\ufffdtxt\ufffddef",
	} {
		if got := printable(text); got != want {
			t.Errorf("%q is printed as %q, want %q", text, got, want)
		}
	}
}
