package kubernetes

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"portcullis.dev/portcullis/coordinator/store"
)

const (
	keyValue   = "latest"
	keyCommits = "commits"
	keyNames   = "names"

	// maxCommits is how many commits latest remembers: as many can follow one whose answer was lost before its writer looks.
	maxCommits = 32
)

// latest is what the ConfigMap of that name holds. Its zero value is the latest of a store that has none yet.
type latest struct {
	// version and uid are the API server's: what an update must name.
	version, uid string
	value        []byte
	// commits are the last commits' names, made at random, the newest first. By them a writer whose answer was lost knows its own
	// commit, even under those that came after it, and from another writer's that happens to have the same value.
	commits []string
	// names leads from the names of objects that are not named by their content to the content, lest two writers who race
	// put different objects in one place, and the loser's stay there.
	names map[store.Name]digest
}

type digest [32]byte

func (l *latest) none() bool { return l.version == "" }

// is says whether latest is the value that a caller knows; nil is none.
func (l *latest) is(value []byte) bool {
	return l.none() == (value == nil) && bytes.Equal(l.value, value)
}

// same says whether two readings are of the same commit.
func (l *latest) same(other *latest) bool {
	return l.none() == other.none() && bytes.Equal(l.value, other.value) && slices.Equal(l.commits, other.commits)
}

// next is what follows l by a new commit.
func (l *latest) next(value []byte, named map[store.Name]digest) *latest {
	commits := append([]string{rand.Text()}, l.commits...)
	names := maps.Clone(l.names)
	if names == nil {
		names = make(map[store.Name]digest)
	}
	maps.Copy(names, named)
	return &latest{
		version: l.version, uid: l.uid, value: value, commits: commits[:min(len(commits), maxCommits)], names: names,
	}
}

func (l *latest) configMap() *configMap {
	var names []string
	for name, digest := range l.names {
		names = append(names, name.String()+" "+hex.EncodeToString(digest[:]))
	}
	slices.Sort(names)
	return &configMap{
		Metadata:   metadata{Name: nameLatest, Labels: labels, UID: l.uid, ResourceVersion: l.version},
		BinaryData: map[string][]byte{keyValue: l.value},
		Data:       map[string]string{keyCommits: strings.Join(l.commits, "\n"), keyNames: strings.Join(names, "\n")},
	}
}

// parseLatest reads what configMap wrote. Whatever it does not know is refused: a latest with a hole would be another history.
func parseLatest(cm *configMap) (*latest, error) {
	l := &latest{
		version: cm.Metadata.ResourceVersion, uid: cm.Metadata.UID, value: cm.BinaryData[keyValue], names: make(map[store.Name]digest),
	}
	switch {
	case l.version == "" || l.uid == "":
		return nil, errors.New("the API server does not tell its version")
	case len(l.value) == 0:
		return nil, fmt.Errorf("it has no %s, or an empty one", keyValue)
	case len(cm.BinaryData) != 1 || len(cm.Data) != 2:
		return nil, fmt.Errorf("it has other keys than %s, %s and %s", keyValue, keyCommits, keyNames)
	case cm.Data[keyCommits] == "":
		return nil, fmt.Errorf("it has no %s", keyCommits)
	}
	l.commits = strings.Split(cm.Data[keyCommits], "\n")
	names, ok := cm.Data[keyNames]
	if !ok {
		return nil, fmt.Errorf("it has no %s", keyNames)
	}
	for line := range strings.Lines(names) {
		name, content, err := parseName(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return nil, err
		}
		if _, twice := l.names[name]; twice {
			return nil, fmt.Errorf("it names %s twice", name)
		}
		l.names[name] = content
	}
	return l, nil
}

func parseName(line string) (name store.Name, content digest, err error) {
	kind, rest, _ := strings.Cut(line, "/")
	hash, of, _ := strings.Cut(rest, " ")
	name.Kind = store.Kind(kind)
	n, err := hex.Decode(name.Hash[:], []byte(hash[:min(len(hash), 64)]))
	m, err2 := hex.Decode(content[:], []byte(of[:min(len(of), 64)]))
	// Written again it must be the same text: so nothing was longer, in capitals, or of an unknown form.
	if err != nil || err2 != nil || n != 32 || m != 32 || name.String()+" "+hex.EncodeToString(content[:]) != line {
		return store.Name{}, digest{}, fmt.Errorf("its names have a line %.200q", line)
	}
	return name, content, nil
}
