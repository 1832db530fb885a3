package netlab

import (
	"bytes"
	"encoding/json"
	"strings"
	"sync"
)

// Log keeps what processes and goroutines write, for tests that read it meanwhile.
type Log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *Log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Entries are the lines of a JSON log that have a message.
func (l *Log) Entries(message string) []map[string]any {
	var entries []map[string]any
	for line := range strings.Lines(l.String()) {
		var e map[string]any
		if json.Unmarshal([]byte(line), &e) == nil && e["msg"] == message {
			entries = append(entries, e)
		}
	}
	return entries
}
