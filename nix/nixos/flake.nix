{
  description = "Portcullis on NixOS: its programs, a podVM image, and a boot of both, by nixpkgs";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs = { nixpkgs, ... }:
    let
      system = "x86_64-linux";
      pkgs = nixpkgs.legacyPackages.${system};
      programs = pkgs.callPackage ./package.nix { };
      podvm = [
        ../modules
        ./podvm.nix
        {
          services.portcullis = {
            package = programs;
            meshproxy.envoy = nixpkgs.lib.getExe pkgs.envoy-bin;
          };
        }
      ];
      # The stand-in of the boot tests, which runs no containers.
      standIn.podvm.agent = "${programs}/bin/standin";
      # A podVM image as a NixOS system: of these modules and the caller's, which name an agent.
      image = modules: nixpkgs.lib.nixosSystem { inherit system; modules = podvm ++ [ ./image.nix ] ++ modules; };
    in
    {
      lib.podvm = image;
      nixosConfigurations.podvm = image [ standIn ];
      packages.${system} = {
        default = programs;
        image = (image [ standIn ]).config.system.build.finalImage;
      };
      checks.${system}.gate = pkgs.testers.runNixOSTest (import ./gate-test.nix { modules = podvm ++ [ standIn ]; });
    };
}
