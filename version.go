// Package portcullis says which release this is.
package portcullis

// Version is this release's. It names the images that generate injects.
const Version = "v0.1.0"
