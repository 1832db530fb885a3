# The policy that the Kata agent of every pod in this demo would enforce.
#
# It admits every request, and nothing in the demo asks it anything: the demo's podVMs are namespaces of this machine, in
# which no Kata agent runs. What the demo does show is that the policy is measured: its bytes are part of each pod's
# initdata, the initdata's SHA-256 is the pod's policy hash, and the manifest admits a pod by that hash. Change a letter
# here without generating anew, and no pod gets a certificate.
#
# For real pods take `portcullis generate --genpolicy PATH` instead: Kata's genpolicy writes, for each pod, the policy that
# admits exactly the containers of its YAML.
package agent_policy

default AllowRequestsFailingPolicy := true
