package tdx

import "testing"

func TestMemoryIsBounded(t *testing.T) {
	m := memory[int]{most: 3}
	for i := range 10 {
		m.put(digest([]byte{byte(i)}), i)
		if v, ok := m.get(digest([]byte{byte(i)})); !ok || v != i {
			t.Errorf("%d is not remembered", i)
		}
		if len(m.known) > 3 {
			t.Fatalf("%d findings, want at most 3", len(m.known))
		}
	}
	if _, ok := m.get(digest([]byte{0})); ok {
		t.Error("the first was to be forgotten")
	}
}

func TestDigestsOfDifferentPartsDiffer(t *testing.T) {
	seen := map[[32]byte]string{}
	for name, parts := range map[string][][]byte{
		"ab":      {[]byte("ab")},
		"a b":     {[]byte("a"), []byte("b")},
		"ab \"\"": {[]byte("ab"), nil},
		"\"\" ab": {nil, []byte("ab")},
	} {
		d := digest(parts...)
		if other, ok := seen[d]; ok {
			t.Errorf("%s and %s have one digest", name, other)
		}
		seen[d] = name
	}
}
