package generate

// Remove takes out of files what Inject put in. The manifest is the caller's: policies of pods that are not injected any
// more are of no use to anybody.
func Remove(files []File, options Options) (*Result, error) {
	g := &generator{Options: options}
	result := new(Result)
	for _, f := range files {
		s, err := g.parseStripped(f)
		if err != nil {
			g.fail(flatten(err)...)
			continue
		}
		result.Files = append(result.Files, File{f.Name, s.text})
	}
	if len(g.faults) > 0 {
		return nil, g.faults
	}
	return result, nil
}
