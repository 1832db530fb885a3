# What is built, each from the sources that it takes and no others: a change of the documentation builds nothing anew.
let
  go = import ./go-tree.nix;
  build = import ./build-go.nix { go = go.src; };
  out = builtins.placeholder "out";

  inherit (builtins) match readFile replaceStrings substring stringLength;
  version = builtins.head (match ".*const Version = \"v([0-9.]+)\".*" (readFile ../version.go));
  line = file: replaceStrings [ "\n" ] [ "" ] (readFile file);

  # sources keeps what wanted says of a path below root, "go.mod" or "cmd/portcullis/main.go", and its type.
  sources = name: root: wanted: builtins.path {
    inherit name;
    path = root;
    filter = path: type: wanted (substring (stringLength (toString root) + 1) (-1) path) type;
  };
  # The Go sources of the product. Tests choose modules for vendor/, whose hash says what they are; they build nothing.
  product = rel: _: match "(docs|nix|tests|tools|vendor|bin|demo|image/oci|\\.ci|\\.git|flake\\..*|.*\\.md|.*_test\\.go|.*/testdata)" rel == null;
  module = rel: type: type == "directory" && match "(vendor|bin|demo|\\.git)" rel == null || match ".*\\.(go|mod|sum)|.*\\.(txt|yaml|html|css|pem|rego|tmpl)" rel != null;

  # What nothing here can fetch, since it comes from a package registry of another kind: nix/seed.sh adds it.
  seeded = name: hash: derivation {
    inherit name;
    inherit (build) system;
    builder = "/bin/sh";
    args = [ "-c" "echo 'portcullis: ${name} is not in the store: nix/seed.sh fetches and adds it' >&2; exit 1" ];
    preferLocalBuild = true;
    outputHashMode = "flat";
    outputHashAlgo = "sha256";
    outputHash = hash;
  };
  pins = builtins.filter (p: p != null) (map (match "([0-9a-f]{64})  (.*)") (builtins.filter builtins.isString (builtins.split "\n" (readFile ../image/oci/pins.sha256))));
  pinned = prefix:
    let pin = builtins.head (builtins.filter (p: substring 0 (stringLength prefix) (builtins.elemAt p 1) == prefix) pins); in
    seeded (builtins.elemAt pin 1) (builtins.head pin);

  ociTool = build.programs {
    name = "portcullis-oci-tool";
    src = sources "portcullis-oci-src" ../image/oci (rel: _: match "vendor|vendor-hash|files-.*|.*_test\\.go" rel == null);
    modules = ociModules;
    packages = [ "." ];
  };
  ociModules = build.vendor {
    name = "portcullis-oci-modules";
    src = sources "portcullis-oci-modules-src" ../image/oci (rel: _: match ".*\\.go|go\\.(mod|sum)|pins\\.sha256" rel != null);
    hash = line ../image/oci/vendor-hash;
  };
  install = build.program "install" ../image/install/main.go;
in
rec {
  inherit build version;

  # Every command, as `make build` makes it.
  programs = build.programs {
    name = "portcullis-${version}";
    src = sources "portcullis-src" ../. product;
    inherit modules;
    packages = [ "./cmd/..." ];
  };
  # vendor/, as `go mod vendor` makes it.
  modules = build.vendor {
    name = "portcullis-modules";
    src = sources "portcullis-modules-src" ../. module;
    hash = line ./vendor-hash;
  };
  inherit ociModules;

  # The OCI images, as `make oci` makes them.
  oci = derivation {
    name = "portcullis-oci-${version}";
    inherit (build) system;
    builder = "${ociTool}/bin/oci";
    args = [ "--bin" "${programs}/bin" "--license" "${../LICENSE}" "--envoy" "${envoy}" "--libc" "${libc}" "--version" "v${version}" "--out" out ];
  };
  envoy = pinned "envoy";
  libc = pinned "libc6_";

  # Go, as the builds have it. What else `make` wants, it says.
  shell = build.shell { GOTOOLCHAIN = "local"; };

  # The units for a podVM image, as `make units` lays them out.
  units = derivation {
    name = "portcullis-units-${version}";
    inherit (build) system;
    builder = "${install}/bin/install";
    args = [ "--sets" "guard mesh coordinator" "--only" "units" "--from" "${sources "portcullis-units-src" ../. (rel: _: match "image|image/files\\.txt|units|units/.*" rel != null && match ".*(_test\\.go|testdata|\\.md)" rel == null)}" "--to" out ];
  };
}
