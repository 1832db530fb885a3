package initdata

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Pod is what the services of a podVM's image know of the pod: files of the folder that podvm-initdata delivered.
type Pod struct {
	// Config is nil where the initdata has none: such a pod is not of Portcullis' making.
	Config *PodConfig
	// Pin is the pin of the pod's Coordinator, empty where it trusts any.
	Pin string
}

// ReadPod reads a folder that Deliver made. That there is no such folder is an error: nothing is known of the pod then.
func ReadPod(dir string) (Pod, error) {
	if info, err := os.Stat(dir); err != nil {
		return Pod{}, fmt.Errorf("read the pod's initdata: %w", err)
	} else if !info.IsDir() {
		return Pod{}, fmt.Errorf("read the pod's initdata: %s is not a folder", dir)
	}
	text, err := readText(filepath.Join(dir, KeyConfig))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Pod{}, nil
	case err != nil:
		return Pod{}, fmt.Errorf("read the pod's initdata: %w", err)
	}
	config, err := ParsePodConfig(text)
	if err != nil {
		return Pod{}, err
	}
	pin, err := readText(filepath.Join(dir, KeyPin))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Pod{}, fmt.Errorf("read the pod's initdata: %w", err)
	}
	return Pod{Config: &config, Pin: pin}, nil
}

// Elsewhere says why the mesh of this pod is no matter of the image's services; empty where it is.
func (p Pod) Elsewhere() string {
	switch c := p.Config; {
	case c == nil:
		return "the pod's initdata has no " + KeyConfig
	case c.Placement != Guest:
		return fmt.Sprintf("the pod's placement is %s: its containers do it", c.Placement)
	case c.Role != Workload:
		return fmt.Sprintf("the pod is the mesh's %s", c.Role)
	case c.Guard == GuardClosed:
		return "the pod's initdata says that the gate stays closed"
	}
	return ""
}

func readText(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err == nil && len(b) > MaxSize {
		err = fmt.Errorf("%s has more than %d bytes", path, MaxSize)
	}
	return string(b), err
}
