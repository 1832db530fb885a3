package generate

// WriteStopping is Write with something done before each step; an error of it is the step's.
func WriteStopping(outputs []Output, before func(step string) error) error {
	return writer{before}.write(outputs)
}
