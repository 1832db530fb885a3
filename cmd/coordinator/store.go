package main

import (
	"flag"
	"fmt"
	"log/slog"

	"k8s.io/klog/v2"

	"portcullis.dev/portcullis/coordinator/store"
	"portcullis.dev/portcullis/coordinator/store/kubernetes"
)

const (
	storeBolt       = "bbolt"
	storeKubernetes = "kubernetes"
)

// checkStore refuses a store that is not known, and what another store is told.
func checkStore(name string, flags *flag.FlagSet) error {
	other, ok := map[string]string{storeBolt: "namespace", storeKubernetes: "db"}[name]
	if !ok {
		return fmt.Errorf("--store %q: want %s or %s", name, storeBolt, storeKubernetes)
	}
	var err error
	flags.Visit(func(f *flag.Flag) {
		if f.Name == other {
			err = fmt.Errorf("--%s is not for --store %s", other, name)
		}
	})
	return err
}

func openStore(o options, log *slog.Logger) (store.Store, error) {
	if o.store == storeBolt {
		return store.OpenBolt(o.db)
	}
	klog.SetSlogLogger(log) // client-go's own words, such as about a token that it cannot read anew
	config, namespace, err := kubernetes.Config()
	if err != nil {
		return nil, err
	}
	if o.namespace != "" {
		namespace = o.namespace
	}
	return kubernetes.Open(config, namespace)
}
