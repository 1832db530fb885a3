# Boots two machines that differ in the gate, and a third that knocks at both.
{ modules }:
let
  # Something that answers, whoever asks.
  answering = { pkgs, ... }: {
    systemd.services.answer = {
      wantedBy = [ "multi-user.target" ];
      serviceConfig.ExecStart = "${pkgs.python3}/bin/python3 -m http.server --directory /var/empty 8080";
    };
  };
in
{
  name = "portcullis-gate";
  nodes = {
    podvm = { config, ... }: {
      imports = modules ++ [ answering ];
      systemd.targets.multi-user.wants = [ "kata-agent.service" ];
      environment.systemPackages = [ config.services.portcullis.package ];
    };
    control = {
      imports = [ answering ];
      networking.firewall.enable = false;
    };
    neighbour = { };
  };
  testScript = ''
    def time(unit, event):
        return int(podvm.succeed(f"systemctl show --value --property {event}TimestampMonotonic {unit}"))

    start_all()
    podvm.wait_for_unit("kata-agent.service")
    for machine in podvm, control:
        machine.wait_for_unit("answer.service")
        machine.wait_until_succeeds("curl --silent --fail http://localhost:8080")

    with subtest("the gate was down before any interface, and before the agent"):
        down = time("podvm-guard.service", "ActiveEnter")
        assert 0 < down <= time("network-pre.target", "ActiveEnter")
        assert down < time("kata-agent.service", "ExecMainStart")
        podvm.succeed("podvm-guard verify")

    with subtest("nobody gets in, and without a gate one would"):
        neighbour.wait_until_succeeds("curl --silent --fail --max-time 5 http://control:8080")
        neighbour.fail("curl --silent --max-time 5 http://podvm:8080")
        neighbour.fail("ping -c 1 -W 2 podvm")

    with subtest("the agent does not outlive its gate's unit"):
        podvm.succeed("systemctl stop podvm-guard.service")
        podvm.fail("systemctl is-active kata-agent.service")
        podvm.succeed("podvm-guard verify")
  '';
}
