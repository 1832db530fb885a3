package envoy

import (
	overloadv3 "github.com/envoyproxy/go-control-plane/envoy/config/overload/v3"
	connectionsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/downstream_connections/v3"
	heapv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/fixed_heap/v3"
	"google.golang.org/protobuf/proto"
)

const (
	monitorConnections = "envoy.resource_monitors.global_downstream_max_connections"
	monitorHeap        = "envoy.resource_monitors.fixed_heap"
)

// overload is what Envoy does before it has no descriptors or no memory left: those that are connected go on, and whoever
// comes then is closed at once, which a peer notices and can act upon; to wait in the backlog it could not tell from a
// network that lost its packets.
func overload(o Options) *overloadv3.OverloadManager {
	return &overloadv3.OverloadManager{
		ResourceMonitors: []*overloadv3.ResourceMonitor{
			monitor(monitorConnections, &connectionsv3.DownstreamConnectionsConfig{MaxActiveDownstreamConnections: o.MaxConnections}),
			monitor(monitorHeap, &heapv3.FixedHeapConfig{MaxHeapSizeBytes: uint64(o.MaxHeap)}),
		},
		Actions: []*overloadv3.OverloadAction{
			heapAbove(0.8, "envoy.overload_actions.shrink_heap"), // what is free goes back to the kernel
			heapAbove(0.9, "envoy.overload_actions.reject_incoming_connections"),
		},
	}
}

func monitor(name string, config proto.Message) *overloadv3.ResourceMonitor {
	return &overloadv3.ResourceMonitor{Name: name, ConfigType: &overloadv3.ResourceMonitor_TypedConfig{TypedConfig: pack(config)}}
}

func heapAbove(share float64, action string) *overloadv3.OverloadAction {
	return &overloadv3.OverloadAction{Name: action, Triggers: []*overloadv3.Trigger{{
		Name:         monitorHeap,
		TriggerOneof: &overloadv3.Trigger_Threshold{Threshold: &overloadv3.ThresholdTrigger{Value: share}},
	}}}
}
