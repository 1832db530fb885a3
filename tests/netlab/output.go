package netlab

import (
	"errors"
	"io"
	"os"
)

// WriteTo lets write fill the file that a flag names: none if that is empty, standard output for "-".
func WriteTo(path string, write func(io.Writer) error) error {
	switch path {
	case "":
		return nil
	case "-":
		return write(os.Stdout)
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}
