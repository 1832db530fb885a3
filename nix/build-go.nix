# Builds Go programs with the Go toolchain alone: no shell, no coreutils, no nixpkgs. The builder is a Go program, which Go
# itself builds. Flags and environment are those of the Makefile, so that the bytes are.
{ go }:
let
  system = "x86_64-linux";
  env = {
    inherit system;
    GOROOT = "${go}";
    # The sandbox's build directory. Without a sandbox there is none, and the build fails, as it should.
    HOME = "/build";
    GOPATH = "/build/go";
    GOCACHE = "/build/cache";
    GOENV = "off";
    GOFLAGS = "";
    GOWORK = "off";
    GOTOOLCHAIN = "local";
    GOTELEMETRY = "off";
    CGO_ENABLED = "0";
    GOAMD64 = "v1";
  };
  offline = env // { GOPROXY = "off"; GOSUMDB = "off"; };
  flags = [ "-trimpath" "-buildvcs=false" "-ldflags=-s -w -buildid=" ];
  out = builtins.placeholder "out";
in
rec {
  inherit system env;

  # A program of one file that needs the standard library alone.
  program = name: file: derivation (offline // {
    inherit name;
    builder = "${go}/bin/go";
    args = [ "build" ] ++ flags ++ [ "-o" "${out}/bin/${name}" "${file}" ];
    disallowedReferences = [ go ];
  });

  builder = program "builder" ./builder/main.go;

  # A file with this text.
  write = name: text: derivation {
    inherit name system;
    builder = "${builder}/bin/builder";
    args = [ "write" out text ];
  };

  # A shell with Go and these variables, for `nix develop`.
  shell = variables: derivation ({
    name = "portcullis-shell";
    inherit system;
    builder = "${program "bash" ./develop/main.go}/bin/bash";
    PATH = "${go}/bin";
  } // variables);

  # What a module requires, as `go mod vendor` lays it out. It is the one step with a network, and its hash is known before.
  vendor = { name, src, hash }: derivation (env // {
    inherit name;
    builder = "${go}/bin/go";
    args = [ "mod" "vendor" "-C" "${src}" "-o" out ];
    impureEnvVars = [ "GOPROXY" "GONOSUMDB" "GOSUMDB" "SSL_CERT_FILE" "http_proxy" "https_proxy" "no_proxy" ];
    outputHashMode = "recursive";
    outputHashAlgo = "sha256";
    outputHash = hash;
  });

  # The programs of a module, in one derivation, since each compiles the standard library anew.
  programs = { name, src, modules, packages }: derivation (offline // {
    inherit name;
    builder = "${builder}/bin/builder";
    args = [ "stage" "${src}" "vendor=${modules}" "--" "${go}/bin/go" "build" "-mod=vendor" ] ++ flags ++ [ "-o" "${out}/bin/" ] ++ packages;
    disallowedReferences = [ go modules src ];
  });
}
