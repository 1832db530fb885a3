package vm

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"sync"
	"time"
)

// Event is something that qemu says about a machine by itself: docs/interop/qmp-spec.txt of qemu.
type Event struct {
	Name string          `json:"event"`
	Data json.RawMessage `json:"data"`
	At   time.Time       `json:"-"`
}

// monitor speaks QMP, one command at a time.
type monitor struct {
	conn    net.Conn
	command sync.Mutex
	answers chan answer
	gone    chan struct{} // closed when qemu has ended, and all that it said is read

	mu     sync.Mutex
	events []Event
	heard  chan struct{} // closed and made anew with each event
}

type answer struct {
	Return json.RawMessage
	Error  *struct{ Class, Desc string }
}

func dialMonitor(ctx context.Context, socket string) (*monitor, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	m := &monitor{conn: conn, answers: make(chan answer, 1), gone: make(chan struct{}), heard: make(chan struct{})}
	go m.listen()
	if _, err := m.run(ctx, "qmp_capabilities", nil); err != nil {
		conn.Close()
		return nil, err
	}
	return m, nil
}

// listen ends with the connection, and so with the machine.
func (m *monitor) listen() {
	defer close(m.gone)
	lines := bufio.NewReader(m.conn)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		e := Event{At: time.Now()}
		var a answer
		if json.Unmarshal(line, &e) == nil && e.Name != "" {
			m.mu.Lock()
			m.events = append(m.events, e)
			close(m.heard)
			m.heard = make(chan struct{})
			m.mu.Unlock()
		} else if json.Unmarshal(line, &a) == nil && (a.Return != nil || a.Error != nil) {
			m.answers <- a
		}
	}
}

// run executes one command of QMP and returns what it answers.
func (m *monitor) run(ctx context.Context, command string, arguments any) (json.RawMessage, error) {
	m.command.Lock()
	defer m.command.Unlock()
	request, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, arguments})
	if err != nil {
		return nil, err
	}
	if _, err := m.conn.Write(append(request, '\n')); err != nil {
		return nil, fmt.Errorf("ask qemu to %s: %w", command, err)
	}
	select {
	case a := <-m.answers:
		if a.Error != nil {
			return nil, fmt.Errorf("qemu does not %s: %s", command, a.Error.Desc)
		}
		return a.Return, nil
	case <-m.gone:
		return nil, fmt.Errorf("ask qemu to %s: it has ended", command)
	case <-ctx.Done():
		return nil, fmt.Errorf("ask qemu to %s: %w", command, ctx.Err())
	}
}

// saw returns the first event that matches, and what to wait for where there is none yet.
func (m *monitor) saw(match func(Event) bool) (*Event, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.events {
		if match(m.events[i]) {
			return &m.events[i], nil
		}
	}
	return nil, m.heard
}
