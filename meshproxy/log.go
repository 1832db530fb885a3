package meshproxy

import (
	"bytes"
	"context"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"portcullis.dev/portcullis/meshproxy/config"
	"portcullis.dev/portcullis/meshproxy/envoy"
	"portcullis.dev/portcullis/pki"
)

// What Envoy writes goes out as entries of the proxy's own log. Much of it is caused by strangers, and some of it is in
// their words. So nothing of it is passed on as it is: lines are taken apart, what they say is put into fields, escaped and cut
// to length, and there are only so many entries of each kind.

// maxLine is how much of a line is looked at.
const maxLine = 32 << 10

// lines cuts what is written to it into lines and hands on the first maxLine bytes of each. It is for one writer at a time.
type lines struct {
	each func(line []byte)
	rest []byte
}

func (l *lines) Write(b []byte) (int, error) {
	n := len(b)
	for {
		part, after, found := bytes.Cut(b, []byte("\n"))
		// The end of a line that is too long is not the beginning of another.
		l.rest = append(l.rest, part[:min(len(part), maxLine-len(l.rest))]...)
		if !found {
			return n, nil
		}
		l.each(l.rest)
		l.rest, b = l.rest[:0], after
	}
}

// printable is what a stranger said, as ASCII without control characters, cut to most bytes. A log is read by terminals, too.
func printable(s string, most int) string {
	cut := len(s) > most
	if cut {
		s = s[:most]
	}
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' || c == '\\' {
			quoted := strconv.QuoteToASCII(s)
			s = strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
			break
		}
	}
	if cut {
		s += "..."
	}
	return s
}

// budget allows so many entries of each kind at once, and one more in each interval afterwards. It counts the others, and
// says how many they were. A kind has tokens of its own: nobody can hide one kind of entry among many of another.
type budget struct {
	log      *slog.Logger
	burst    int
	interval time.Duration

	mu    sync.Mutex
	kinds map[string]*allowance
	timer *time.Timer
}

type allowance struct {
	tokens     int
	since      time.Time // when the last token came
	suppressed int       // since they were last told of
	total      uint64
}

// reportInterval is how long suppressed entries are counted before the log says how many there were.
const reportInterval = 10 * time.Second

// allow takes a token of the kind. Kinds are words of ours: there are few.
func (b *budget) allow(kind string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.kinds == nil {
		b.kinds = map[string]*allowance{}
	}
	now := time.Now()
	a := b.kinds[kind]
	if a == nil {
		a = &allowance{tokens: b.burst, since: now}
		b.kinds[kind] = a
	}
	if n := int(now.Sub(a.since) / b.interval); n > 0 {
		a.tokens = min(b.burst, a.tokens+n)
		a.since = a.since.Add(time.Duration(n) * b.interval)
	}
	if a.tokens > 0 {
		a.tokens--
		return true
	}
	a.suppressed++
	a.total++
	if b.timer == nil {
		b.timer = time.AfterFunc(reportInterval, b.report)
	}
	return false
}

func (b *budget) report() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.timer = nil
	for kind, a := range b.kinds {
		if a.suppressed > 0 {
			b.log.Warn("entries are left out of the log", "kind", kind, "entries", a.suppressed)
			a.suppressed = 0
		}
	}
}

// close says what is left to say.
func (b *budget) close() {
	b.mu.Lock()
	if b.timer != nil {
		b.timer.Stop()
	}
	b.mu.Unlock()
	b.report()
}

// suppressed is how many entries were left out since the beginning.
func (b *budget) suppressed() (sum uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, a := range b.kinds {
		sum += a.total
	}
	return sum
}

// logs are the proxy's log of what its Envoys do, one after the other.
type logs struct {
	// messages are Envoy's own; refusals and accesses are about connections.
	messages, refusals, accesses budget
	wanted                       map[string][]pki.SAN
	all                          bool
}

const (
	// Of Envoy's own messages.
	messageBurst    = 100
	messageInterval = time.Second
	// A client that is refused once a second is logged each time; a flood of one kind fills 50 MB a day at most.
	refusalBurst    = 20
	refusalInterval = time.Second
	// More than a worker can shake hands with.
	accessBurst    = 10_000
	accessInterval = 200 * time.Microsecond
)

func newLogs(log *slog.Logger, mesh *config.Config, all bool) *logs {
	return &logs{
		messages: budget{log: log, burst: messageBurst, interval: messageInterval},
		refusals: budget{log: log, burst: refusalBurst, interval: refusalInterval},
		accesses: budget{log: log, burst: accessBurst, interval: accessInterval},
		wanted:   envoy.Wanted(mesh),
		all:      all,
	}
}

// close says what is left to say.
func (l *logs) close() {
	for _, b := range []*budget{&l.messages, &l.refusals, &l.accesses} {
		b.close()
	}
}

// suppressed is how many entries were left out since the beginning.
func (l *logs) suppressed() (sum uint64) {
	for _, b := range []*budget{&l.messages, &l.refusals, &l.accesses} {
		sum += b.suppressed()
	}
	return sum
}

// logFormat makes Envoy's lines easy to take apart: level, component, message.
const logFormat = "%l|%n|%v"

// envoyLog takes what one Envoy says of itself, on standard error, into the proxy's own log.
type envoyLog struct {
	lines
	budget *budget

	mu   sync.Mutex
	last string
}

func newEnvoyLog(b *budget) *envoyLog {
	l := &envoyLog{budget: b}
	l.each = l.line
	return l
}

var logLevels = map[string]slog.Level{
	"trace": slog.LevelDebug, "debug": slog.LevelDebug, "info": slog.LevelInfo,
	"warning": slog.LevelWarn, "error": slog.LevelError, "critical": slog.LevelError,
}

// unescape undoes --log-format-escaped, which keeps a message on its line.
var unescape = strings.NewReplacer(`\'`, `'`, `\"`, `"`, `\n`, " ", `\t`, " ", `\\`, `\`)

// maxMessage is long enough for Envoy's errors about a configuration, which quote it.
const maxMessage = 4 << 10

func (l *envoyLog) line(raw []byte) {
	line := strings.TrimSpace(string(raw))
	if line == "" {
		return
	}
	// What is of another form are the C++ runtime's or the dynamic loader's last words.
	level, message, attributes := slog.LevelError, printable(line, maxMessage), []any{"source", "envoy"}
	if fields := strings.SplitN(line, "|", 3); len(fields) == 3 {
		if known, ok := logLevels[fields[0]]; ok {
			level, message = known, printable(unescape.Replace(fields[2]), maxMessage)
			attributes = append(attributes, "logger", printable(fields[1], maxField))
		}
	}
	if level == slog.LevelError {
		l.mu.Lock()
		l.last = message
		l.mu.Unlock()
	}
	if l.budget.allow("envoy " + strings.ToLower(level.String())) {
		l.budget.log.Log(context.Background(), level, message, attributes...)
	}
}

func (l *envoyLog) lastError() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}
