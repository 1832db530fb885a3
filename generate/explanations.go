package generate

// explanations are all codes in their order. docs/codes.md is made of them.
var explanations = []Explanation{
	{
		Code: codeYAML, Title: "This is not the YAML of Kubernetes objects",
		Why: "It does not parse, or it parses into something that two readers would read differently: duplicate keys, keys that are not " +
			"strings, tags that lie, aliases of what they stand in. What generate reads must be what the API server reads.",
		Do:      "correct it at the place given. Templates must be rendered first: `helm template shop | portcullis generate ... -`.",
		Example: "metadata:\n  name: web\n  name: cart",
	},
	{
		Code: codeStyle, Title: "Nothing can be added here without changing what is yours",
		Why: "generate adds lines and changes none. Here the way it is written (an alias, a merge key, a key behind `?`) leaves no place to add " +
			"to without changing other bytes, or the meaning of other objects.",
		Do:      "write that part out, in plain block style, as the message says.",
		Example: "spec:\n  <<: *shared # has the volumes that generate must add to",
	},
	{
		Code: codeEdited, Title: "What an earlier run added was changed by hand",
		Why:     "An earlier injection is found by its names and replaced. What was moved or extended could only be guessed at.",
		Do:      "take the part out by hand, or restore it and run `portcullis generate --remove`.",
		Example: "httpGet: {path: /probes/web/liveness, port: 15021, scheme: HTTPS} # scheme was added",
	},
	{
		Code: codeOurs, Title: "A name that is generate's own",
		Why: "What bears one of generate's names (containers and volumes contrast-initializer, contrast-service-mesh, contrast-secrets, and " +
			"the annotations that it writes) is taken for the injection and replaced at the next run.",
		Do:      "give yours another name.",
		Example: "volumes:\n  - name: contrast-secrets\n    emptyDir: {}",
	},
	{
		Code: codeTwice, Title: "Two containers of one pod have one name",
		Why:     "What generate keeps of a container, such as its original probes, is kept by its name.",
		Do:      "give each container a name of its own; Kubernetes asks for that too.",
		Example: "containers:\n  - name: web\n  - name: web",
	},
	{
		Code: codeNoName, Title: "An object without a name",
		Why: "The measured initdata says whose it is, which keeps two otherwise equal pods apart.",
		Do:  "write metadata.name, or metadata.generateName.",
	},

	{
		Code: codeMesh, Title: "A mesh annotation that cannot be read",
		Why:     "A value that is half understood would be half a mesh. All faults of a value are reported at once.",
		Do:      "write what the message asks for; docs/annotations.md has the grammar, and `portcullis lint --ingress VALUE` says what a value means.",
		Example: "contrast.edgeless.systems/servicemesh-ingress: web#80800#false",
	},
	{
		Code: codeNotString, Title: "An annotation that is not a string",
		Why:     "Kubernetes knows strings only here, and refuses the object.",
		Do:      "put the value in quotes.",
		Example: "contrast.edgeless.systems/servicemesh-admin-interface-port: 9901",
	},
	{
		Code: codeTwoValues, Title: "One annotation with two values",
		Why: "The object says one thing and its pod template another. Neither is obviously the one that was meant.",
		Do:  "keep one of them.",
	},
	{
		Code: codeUnknown, Title: "An annotation that does not exist",
		Why: "Whoever wrote it relies on it. A misspelt servicemesh-ingress would be a pod outside the mesh, whose ports are open.",
		Do:  "correct the name, or remove the annotation. docs/annotations.md lists them.", Example: "contrast.edgeless.systems/servicemesh-ingres: web#8080#false",
	},
	{
		Code: codeNotOffered, Title: "An annotation of Contrast that Portcullis does not have",
		Why: "secure-pv asks for encrypted storage: without it the pod would write plaintext to a disk of the host's. image-store-size asks for " +
			"an encrypted disk for container images: here they are unpacked into the podVM's memory.",
		Do: "for secure-pv: let the workload encrypt what it stores, under a key that it derives from /contrast/secrets/workload-secret-seed " +
			"(annotation workload-secret-id), and remove the annotation; where it cannot, do not move it here. For image-store-size: give the " +
			"containers memory limits that have room for their unpacked images, and remove it.",
		Example: "contrast.edgeless.systems/secure-pv: state:share",
	},
	{
		Code: codeForeign, Title: "A mesh annotation on a pod that is not confidential",
		Why: "Its runtime class is none of a podVM, or generate does not find the pods of such an object. Nothing would be injected, and no " +
			"gate would be there.",
		Do: "correct runtimeClassName, name its prefix with --runtime-class, or remove the annotation.",
	},
	{
		Code: codeValue, Title: "An annotation with a value that it cannot have",
		Why: "A value that is not understood is not guessed at.", Do: "write one of the values that the message lists.",
		Example: "contrast.edgeless.systems/skip-initializer: \"yes\"",
	},
	{
		Code: codeContradiction, Title: "Annotations that contradict each other",
		Why: "One asks for what another rules out, such as a mesh for a pod without the Initializer, which has no credentials.",
		Do:  "remove one of them.", Example: "contrast.edgeless.systems/skip-initializer: \"true\"\ncontrast.edgeless.systems/servicemesh-ingress: \"\"",
	},
	{
		Code: codeDisabled, Title: "DISABLED takes the guard away", Warning: true, Acceptable: true,
		Why: "Everything comes in to the pod as it is, in plaintext, from anybody. The pod can still call out through the mesh.",
		Do:  "write CLOSED where nothing need come in, or name the ports; accept this where the application protects itself.", Example: "contrast.edgeless.systems/servicemesh-ingress: DISABLED",
	},
	{
		Code: codeAcceptUnknown, Title: "portcullis.dev/accept names a code that cannot be accepted", Warning: true,
		Why: "It does not exist, or it is one that nothing can make right. It silences nothing.",
		Do:  "correct it, or take it out of the annotation.", Example: "portcullis.dev/accept: PC1001",
	},
	{
		Code: codeAcceptUnused, Title: "portcullis.dev/accept names a code without use", Warning: true,
		Why: "Nothing in this object is reported under it. Left in, it would silence what somebody adds later.",
		Do:  "take it out of the annotation.",
	},

	{
		Code: codeProbe, Title: "A probe that Kubernetes would refuse",
		Why: "The mesh proxy asks in kubelet's place, so generate must understand the probe wholly.",
		Do:  "correct it as the message says.", Example: "livenessProbe:\n  httpGet: {path: /healthz}",
	},
	{
		Code: codeProbeHost, Title: "A probe of another host", Warning: true, Acceptable: true,
		Why: "Kubelet asks that host and not the pod, so the probe says nothing of the pod and stays as it is.",
		Do:  "take the host out, so that the probe is led to the mesh proxy.", Example: "httpGet: {host: example.com, port: 80}",
	},
	{
		Code: codeProbeClosed, Title: "A probe of a pod into which nothing comes",
		Why: "With ingress CLOSED kubelet cannot reach the pod; the probe would fail and the pod would be killed.",
		Do:  "use exec, or an empty ingress value.", Example: "contrast.edgeless.systems/servicemesh-ingress: CLOSED # and livenessProbe.httpGet",
	},
	{
		Code: codeProbeHTTPS, Title: "A probe over HTTPS of a port whose TLS the mesh proxy terminates", Warning: true, Acceptable: true,
		Why: "The proxy asks the application itself, which probably speaks HTTP there.",
		Do:  "write scheme HTTP, unless the application speaks TLS too.", Example: "httpGet: {port: 8080, scheme: HTTPS} # with ingress web#8080#false",
	},
	{
		Code: codeHook, Title: "A lifecycle hook that TLS keeps out", Warning: true, Acceptable: true,
		Why: "Kubelet's request does not reach the port, and nothing can ask in its place: what anybody may call must change nothing.",
		Do:  "use exec.", Example: "lifecycle:\n  preStop:\n    httpGet: {path: /quit, port: 8080}",
	},

	{
		Code: codeHostNetwork, Title: "hostNetwork",
		Why: "A podVM has a network of its own, and the gate stands in it. With the host's network, peers would speak to a node's address, where " +
			"no gate and no identity of this pod is.",
		Do: "remove it. There is no way to accept it: a podVM does not have the host's network.", Example: "hostNetwork: true",
	},
	{
		Code: codePowers, Title: "A container that could open the gate", Acceptable: true,
		Why: "The gate is a table of nftables in the network that the pod's containers share. Who has one of these can change it or get around it: " +
			"privileged, NET_ADMIN, SYS_ADMIN, SYS_MODULE, SYS_RAWIO, SYS_PTRACE, BPF, ALL.",
		Do:      "take it away. Accept it for code that you trust as you trust the mesh proxy: from then on the gate is as good as that container.",
		Example: "securityContext:\n  capabilities:\n    add: [NET_ADMIN]",
	},
	{
		Code: codeNetRaw, Title: "A container that keeps NET_RAW", Warning: true, Acceptable: true,
		Why: "Container runtimes give NET_RAW unless it is dropped. With it a process can mark its sockets as the mesh proxy does, and so receive " +
			"plaintext through the gate on a port of its choice, and can read the pod's packets. It must be broken into first.",
		Do: "write securityContext.capabilities.drop: [NET_RAW], or [ALL], into the containers that the message names; only what makes raw " +
			"sockets, such as ping, needs it.",
		Example: "containers:\n  - name: web # without securityContext",
	},
	{
		Code: codePastLock, Title: "A container that can send past the egress lock", Warning: true, Acceptable: true,
		Why: "The lock (servicemesh-egress-policy) lets out what the mesh proxy marks. With NET_RAW a process can mark its own sockets so, or send " +
			"frames past the rules.",
		Do: "write securityContext.capabilities.drop: [NET_RAW], or [ALL].",
	},
	{
		Code: codeMount, Title: "A mount over the mesh credentials",
		Why: "/contrast is where every container finds the credentials. A mount over it hides them; with a subPath they would be those of the first " +
			"day for ever, since renewal swaps the folder.",
		Do: "choose another mountPath, and leave the mount of contrast-secrets to generate.", Example: "volumeMounts:\n  - name: data\n    mountPath: /contrast/tls-config",
	},
	{
		Code: codeHostPath, Title: "A hostPath volume", Warning: true, Acceptable: true,
		Why: "What is written there the host reads, and what is read there the host chose, at any moment.",
		Do:  "use emptyDir, which is the podVM's, or encrypt and authenticate what is stored.", Example: "volumes:\n  - name: data\n    hostPath: {path: /srv}",
	},
	{
		Code: codeSharePID, Title: "shareProcessNamespace", Warning: true, Acceptable: true,
		Why: "The pod's containers see the processes of Initializer and mesh proxy too, and those of root can stop them. The gate goes down then, " +
			"not up; but one container can end the mesh of all.",
		Do: "remove it where nothing needs it.", Example: "shareProcessNamespace: true",
	},
	{
		Code: codeHostPID, Title: "hostPID or hostIPC", Warning: true, Acceptable: true,
		Why: "A podVM sees no process and no memory of the host, so the pod will not have what it asks for.",
		Do:  "remove it.", Example: "hostPID: true",
	},
	{
		Code: codeEscalation, Title: "allowPrivilegeEscalation: true", Warning: true, Acceptable: true,
		Why: "A process may gain capabilities by running a set-user-ID program, NET_RAW among them unless it is dropped.",
		Do:  "write false.", Example: "securityContext:\n  allowPrivilegeEscalation: true",
	},
	{
		Code: codeHostPort, Title: "hostPort", Warning: true, Acceptable: true,
		Why: "The node's port leads to the pod's, for everybody who reaches the node. The gate is still in front, so what asks for a certificate of " +
			"the mesh still does.",
		Do: "use a Service, or accept this for a port with `false` or `true`.", Example: "ports:\n  - {containerPort: 8080, hostPort: 80}",
	},
	{
		Code: codeReserved, Title: "A port of the mesh proxy's", Warning: true, Acceptable: true,
		Why: "Ports 15000 to 15099 belong to the mesh proxy. An application that takes one keeps the proxy from listening, and the gate stays down; " +
			"or it is reached by nobody.",
		Do: "choose another port.", Example: "ports:\n  - containerPort: 15006",
	},
	{
		Code: codeDropped, Title: "A port that nothing can reach", Warning: true, Acceptable: true,
		Why: "UDP and SCTP are dropped unless ingress names them; SCTP cannot be named.",
		Do:  "add an entry name#port/udp#true, which is plaintext, or remove the port.", Example: "ports:\n  - {containerPort: 53, protocol: UDP}",
	},
	{
		Code: codeVariable, Title: "A variable of the injected containers in one of yours", Warning: true, Acceptable: true,
		Why: "COORDINATOR_HOST and CONTRAST_* are read by Initializer and mesh proxy only, which generate configures by annotations. In another " +
			"container they change nothing.",
		Do: "use the annotation that stands for it, or remove the variable.", Example: "env:\n  - {name: CONTRAST_INGRESS_PROXY_CONFIG, value: \"web#8080#true\"}",
	},
	{
		Code: codeMemory, Title: "A container without a memory limit", Warning: true, Acceptable: true,
		Why: "A podVM is sized by its containers' limits. Without one the container gets what the runtime class has by default, and images are " +
			"unpacked into that memory too.",
		Do: "write resources.limits.memory, with room for the unpacked image.", Example: "containers:\n  - name: web # without resources",
	},
	{
		Code: codeEphemeral, Title: "Ephemeral containers",
		Why: "Kubernetes takes them only through `kubectl debug`, never in an object; a file that has them was read back from a cluster. They would " +
			"share the pod's network, behind the gate.",
		Do: "remove spec.ephemeralContainers. For debugging, run a pod with another policy, outside of this manifest.", Example: "ephemeralContainers:\n  - name: debugger",
	},
	{
		Code: codeRuntime, Title: "A runtime class that looks confidential and is not taken for it", Warning: true, Acceptable: true,
		Why: "The pod stays as it is: no gate, no identity, no policy.",
		Do:  "name the prefix with --runtime-class where it is one of podVMs; accept this for ordinary Kata.", Example: "runtimeClassName: kata-qemu-coco-dev",
	},
	{
		Code: codeOutside, Title: "A Service that leads from outside to a port that asks for a certificate of the mesh", Warning: true, Acceptable: true,
		Why: "NodePort, LoadBalancer and externalIPs are for clients outside the cluster, which have no certificate of the mesh: they do not get in.",
		Do:  "add an ingress entry name#port#false (TLS without a client certificate), or make the Service a ClusterIP.", Example: "kind: Service\nspec:\n  type: LoadBalancer",
	},

	{
		Code: codeSharedService, Title: "A Service that selects two pods", Warning: true, Acceptable: true,
		Why: "Its name would be an identity of both, and who asks for it would trust either. So it is nobody's, and connections that ask for it fail.",
		Do:  "let callers list both by their own names in the egress entry's identities, or give each a Service of its own.",
	},
	{
		Code: codeSharedName, Title: "One name in two namespaces", Warning: true, Acceptable: true,
		Why: "The short name of a Service would lead to one pod or another, depending on where it is asked. So it is nobody's identity.",
		Do:  "call it name.namespace.",
	},
	{
		Code: codeBadName, Title: "A Service whose name cannot be an identity",
		Why: "It is no DNS name, so no certificate can carry it.", Do: "give it a name that Kubernetes would accept.",
	},
	{
		Code: codeNobody, Title: "An identity that nobody has", Warning: true, Acceptable: true,
		Why: "No policy of the manifest carries the name that this entry asks for, so its connections will be refused. The message says why, where " +
			"the files show it: an ExternalName Service is another name of something outside, a Service without a selector or of pods that " +
			"are not confidential leads to no pod of the mesh.",
		Do: "correct the name, write the peer's identity into the entry, or give the peer that name.", Example: "contrast.edgeless.systems/servicemesh-egress: db#127.0.0.9:5432#database:5432",
	},
	{
		Code: codeReplicas, Title: "More replicas than names", Warning: true, Acceptable: true,
		Why: "Each pod of a StatefulSet has names of its own (db-0.db, ...), which are identities of the StatefulSet's one policy. A certificate with " +
			"more than so many would be too large, so those of later pods are nobody's.",
		Do: "call the later ones by the Service's name, which all carry.", Example: "kind: StatefulSet\nspec:\n  replicas: 1000",
	},

	{
		Code: codeOneHash, Title: "Two pods with one policy hash",
		Why: "The policy hash is all that the hardware says of a pod: with one hash they would have one identity and one secret.",
		Do:  "give them different names.",
	},
	{
		Code: codePin, Title: "Pods cannot be pinned to these Coordinators",
		Why: "--pin-coordinator measures the one Coordinator among the files and writes its policy hash into the others.",
		Do:  "give the YAML of exactly one Coordinator.",
	},
	{
		Code: codeUnpinned, Title: "A pod that was pinned to its Coordinator and is no longer", Warning: true,
		Why: "It joins the mesh of any Coordinator that answers.", Do: "run generate with --pin-coordinator again.",
	},
	{
		Code: codePolicy, Title: "No policy could be made for a pod",
		Why: "genpolicy failed, or its policy does not fit into the pod's initdata. A pod without a policy would let the host run anything in it.",
		Do:  "see genpolicy's own words in the message; it is run once for each object, which it reads from its standard input.",
	},
	{
		Code: codeConflict, Title: "One identity under two policies",
		Why: "Of the manifest's other policies, which nobody's pod of these files has, one carries a name that belongs to a pod of these files. " +
			"A peer that asks for it would trust both.",
		Do: "take the name, or the policy, out of the manifest.",
	},
	{
		Code: codeGone, Title: "A policy left the manifest", Warning: true,
		Why: "Its pod is in none of the files any more. Left in, a pod of that old policy would still be let into the mesh.",
		Do:  "nothing, if the pod is gone. Where the files are a part of an application, give all of them.",
	},
	{
		Code: codeLoosePin, Title: "A pin that the policy may not hold", Warning: true,
		Why: "The pin is an argument of the Initializer. A policy that does not pin arguments lets the host leave it away.",
		Do:  "use --genpolicy, or see that the policy pins the Initializer's arguments.",
	},
}
