# The programs by nixpkgs' Go, of the same sources and the same vendor/. nixpkgs patches Go's standard library: these are other
# bytes than those of the flake above, and have other measurements.
{ lib, buildGo126Module }:
buildGo126Module {
  pname = "portcullis";
  inherit (import ../packages.nix) version;
  src = lib.cleanSource ../..;
  vendorHash = lib.fileContents ../vendor-hash;
  subPackages = [
    "cmd/coordinator"
    "cmd/initializer"
    "cmd/meshproxy"
    "cmd/podvm-attest"
    "cmd/podvm-guard"
    "cmd/podvm-initdata"
    "cmd/portcullis"
    "tests/podvm/standin"
  ];
  env.CGO_ENABLED = 0;
  ldflags = [ "-s" "-w" "-buildid=" ];
  # The tests want root, namespaces and Envoy: make test.
  doCheck = false;
  meta = {
    description = "Confidential service mesh for podVMs";
    license = lib.licenses.asl20;
    mainProgram = "portcullis";
    platforms = [ "x86_64-linux" ];
  };
}
