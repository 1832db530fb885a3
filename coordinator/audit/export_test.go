package audit

import "os"

// Unwritable makes every later write fail as a full disk does.
func (l *Log) Unwritable() (restore func(), err error) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.file
	l.file = full
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.file.Close()
		l.file = old
	}, nil
}

// Events are the names of all events.
func Events() []string {
	var names []string
	for name := range events {
		names = append(names, name)
	}
	return names
}
