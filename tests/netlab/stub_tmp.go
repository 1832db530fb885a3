package netlab
const argvInit, argvContainer = "netlab-init", "netlab-container"
func runInit() error { return nil }
func runContainer() error { return nil }
