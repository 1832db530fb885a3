// Command validate says what a Kubernetes API server would say of objects, without one: it decodes them strictly, fills in the
// defaults and runs the validation of the API server's own packages.
//
// It reads YAML or JSON as kubectl does, from standard input, and prints one fault a line. With --stream it reads one JSON
// string a line, each a file's text, and answers each with one line, a JSON list of faults.
//
// It is a module of its own, so that nothing of Kubernetes' server is among what the product is built from. What it cannot see
// is whatever needs a running cluster: admission, custom resources, namespaces. Objects of groups it does not know pass.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	jsonserializer "k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/api/pod"
	"k8s.io/kubernetes/pkg/apis/apps"
	_ "k8s.io/kubernetes/pkg/apis/apps/install"
	appsvalidation "k8s.io/kubernetes/pkg/apis/apps/validation"
	"k8s.io/kubernetes/pkg/apis/batch"
	_ "k8s.io/kubernetes/pkg/apis/batch/install"
	batchvalidation "k8s.io/kubernetes/pkg/apis/batch/validation"
	"k8s.io/kubernetes/pkg/apis/core"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	corevalidation "k8s.io/kubernetes/pkg/apis/core/validation"
	"k8s.io/kubernetes/pkg/capabilities"
)

func main() {
	capabilities.Setup(true, 0) // privileged pods are for the cluster's policy to forbid
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "validate:", err)
		os.Exit(1)
	}
}

func run(args []string, in io.Reader, out io.Writer) error {
	switch {
	case len(args) == 1 && args[0] == "--stream":
		return stream(in, out)
	case len(args) > 0:
		return errors.New("usage: validate [--stream] <YAML")
	}
	text, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	for _, fault := range faultsOf(string(text)) {
		fmt.Fprintln(out, fault)
	}
	return nil
}

func stream(in io.Reader, out io.Writer) error {
	decoder, encoder := json.NewDecoder(bufio.NewReader(in)), json.NewEncoder(out)
	for {
		var text string
		switch err := decoder.Decode(&text); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if err := encoder.Encode(faultsOf(text)); err != nil {
			return err
		}
	}
}

// faultsOf are the faults of every object of a file.
func faultsOf(text string) []string {
	faults := []string{}
	decoder := yaml.NewYAMLOrJSONDecoder(strings.NewReader(text), 4096)
	for n := 1; ; n++ {
		var document runtime.RawExtension
		switch err := decoder.Decode(&document); {
		case errors.Is(err, io.EOF):
			return faults
		case err != nil:
			return append(faults, fmt.Sprintf("document %d: %v", n, err))
		}
		if raw := strings.TrimSpace(string(document.Raw)); raw == "" || raw == "null" { // nothing but comments
			continue
		}
		for _, fault := range objectFaults(document.Raw, "", "") {
			faults = append(faults, fmt.Sprintf("document %d: %s", n, fault))
		}
	}
}

// objectFaults are those of one object, or of every item of a list, whose items may leave out what the list's kind says.
func objectFaults(raw []byte, apiVersion, kind string) []string {
	var object map[string]any
	if err := json.Unmarshal(raw, &object); err != nil {
		return []string{err.Error()}
	}
	for key, implied := range map[string]string{"apiVersion": apiVersion, "kind": kind} {
		if object[key] == nil && implied != "" {
			object[key] = implied
		}
	}
	kind, _ = object["kind"].(string)
	if items, ok := object["items"].([]any); ok && strings.HasSuffix(kind, "List") {
		apiVersion, _ := object["apiVersion"].(string)
		if kind == "List" {
			apiVersion = ""
		}
		var faults []string
		for i, item := range items {
			raw, err := json.Marshal(item)
			if err != nil {
				return []string{err.Error()}
			}
			for _, fault := range objectFaults(raw, apiVersion, strings.TrimSuffix(kind, "List")) {
				faults = append(faults, fmt.Sprintf("items[%d]: %s", i, fault))
			}
		}
		return faults
	}
	raw, err := json.Marshal(object)
	if err != nil {
		return []string{err.Error()}
	}
	decoded, err := decode(raw)
	if err != nil {
		if runtime.IsNotRegisteredError(err) {
			return nil
		}
		return []string{err.Error()}
	}
	var faults []string
	for _, fault := range validate(decoded) {
		faults = append(faults, fault.Error())
	}
	return faults
}

// decode reads one object, unknown and doubled fields refused, with its defaults filled in.
func decode(raw []byte) (runtime.Object, error) {
	strict := jsonserializer.NewSerializerWithOptions(jsonserializer.DefaultMetaFactory, legacyscheme.Scheme, legacyscheme.Scheme,
		jsonserializer.SerializerOptions{Strict: true})
	object, err := runtime.Decode(legacyscheme.Codecs.DecoderToVersion(strict, internal{}), raw)
	if err != nil {
		return nil, err
	}
	if accessor, err := meta.Accessor(object); err == nil && accessor.GetNamespace() == "" {
		accessor.SetNamespace("default") // as kubectl does
	}
	return object, nil
}

// internal asks for the version that the API server works with.
type internal struct{}

func (internal) KindForGroupVersionKinds(kinds []schema.GroupVersionKind) (schema.GroupVersionKind, bool) {
	return runtime.InternalGroupVersioner.KindForGroupVersionKinds(kinds)
}

func (internal) Identifier() string { return "internal" }

// validate is what the API server's registry does when an object is created.
func validate(object runtime.Object) field.ErrorList {
	switch o := object.(type) {
	case *core.Pod:
		options := pod.GetValidationOptionsFromPodSpecAndMeta(&o.Spec, nil, &o.ObjectMeta, nil)
		options.ResourceIsPod = true
		return corevalidation.ValidatePodCreate(o, options)
	case *core.PodTemplate:
		return corevalidation.ValidatePodTemplate(o, pod.GetValidationOptionsFromPodTemplate(&o.Template, nil))
	case *core.ReplicationController:
		return corevalidation.ValidateReplicationController(o, pod.GetValidationOptionsFromPodTemplate(o.Spec.Template, nil))
	case *core.Service:
		return corevalidation.ValidateServiceCreate(o)
	case *core.ConfigMap:
		return corevalidation.ValidateConfigMap(o)
	case *core.Secret:
		return corevalidation.ValidateSecret(o)
	case *core.ServiceAccount:
		return corevalidation.ValidateServiceAccount(o)
	case *apps.Deployment:
		return appsvalidation.ValidateDeployment(o, pod.GetValidationOptionsFromPodTemplate(&o.Spec.Template, nil))
	case *apps.ReplicaSet:
		return appsvalidation.ValidateReplicaSet(o, pod.GetValidationOptionsFromPodTemplate(&o.Spec.Template, nil))
	case *apps.DaemonSet:
		return appsvalidation.ValidateDaemonSet(o, pod.GetValidationOptionsFromPodTemplate(&o.Spec.Template, nil))
	case *apps.StatefulSet:
		return appsvalidation.ValidateStatefulSet(o, appsvalidation.StatefulSetValidationOptions{},
			pod.GetValidationOptionsFromPodTemplate(&o.Spec.Template, nil))
	case *batch.Job:
		options := batchvalidation.JobValidationOptions{
			PodValidationOptions: pod.GetValidationOptionsFromPodTemplate(&o.Spec.Template, nil),
		}
		return batchvalidation.ValidateJobCreate(o, options)
	case *batch.CronJob:
		return batchvalidation.ValidateCronJobCreate(o, pod.GetValidationOptionsFromPodTemplate(&o.Spec.JobTemplate.Spec.Template, nil))
	}
	return nil
}
