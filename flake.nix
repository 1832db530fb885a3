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
      # The components of a podVM, switched on by services.portcullis: nix/modules.
      nixosModules.default = { lib, ... }: {
        imports = [ ./nix/modules ];
        services.portcullis.package = lib.mkDefault packages.programs;
      };
      checks.${system} = {
        inherit (packages) programs units;
        modules = packages.build.write "portcullis-modules-tested" (import ./nix/tests { });
      };
    };
}
