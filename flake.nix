{
  description = "Portcullis: a confidential service mesh for podVMs";

  # No inputs: everything here is built by the official Go release alone (nix/go-tree.nix). What takes nixpkgs is a flake of
  # its own, nix/nixos.
  outputs = _:
    let
      system = "x86_64-linux";
      packages = import ./nix/packages.nix;
    in
    {
      packages.${system} = {
        default = packages.programs;
        inherit (packages) programs oci units;
      };
      apps.${system}.default = {
        type = "app";
        program = "${packages.programs}/bin/portcullis";
      };
      devShells.${system}.default = packages.shell;
      checks.${system} = {
        inherit (packages) programs units;
      };
    };
}
