# The official Go release, by the hash of its unpacked tree: the one compiler of every build.
# A machine that has this Go already, and the store path made of it (nix/seed.sh), fetches nothing.
rec {
  version = "1.26.8";
  name = "go${version}-linux-amd64";
  src = builtins.fetchTarball {
    inherit name;
    url = "https://go.dev/dl/go${version}.linux-amd64.tar.gz";
    sha256 = "sha256-vVNIRJNzXV7N6zOFSW/mvxUQMiFgerhrnBgGjFRwFuk=";
  };
}
