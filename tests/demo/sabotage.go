package main

import "bytes"

// sabotages are ways to break what a check checks, each seen to fail that check (make demo-broken).
var sabotages = []string{
	"early-gate", "no-mesh-gate", "no-mesh-initializer", "trust", "metrics-port", "web-plaintext", "billing-plaintext",
	"billing-no-client-auth", "dns", "wire", "other-mesh", "measurement", "envoy-killed",
}

// sabotageYAML weakens the annotations that some of the sabotages speak of.
func sabotageYAML(yaml []byte, name string) []byte {
	web := `servicemesh-ingress: web#8080#false##metrics#7890#true`
	mtls := `servicemesh-ingress: ""`
	var from, to string
	switch name {
	case "metrics-port":
		from, to = web, `servicemesh-ingress: web#8080#false`
	case "web-plaintext":
		from, to = web, `servicemesh-ingress: web#8080#true##metrics#7890#true`
	case "billing-plaintext":
		from, to = mtls, `servicemesh-ingress: "shop#8080#true"`
	case "billing-no-client-auth":
		from, to = mtls, `servicemesh-ingress: "shop#8080#false"`
	default:
		return yaml
	}
	if !bytes.Contains(yaml, []byte(from)) {
		panic("shop.yaml has no annotation " + from)
	}
	return bytes.ReplaceAll(yaml, []byte(from), []byte(to))
}
