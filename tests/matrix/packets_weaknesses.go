package main

// Weaknesses that rows about packets name.
const (
	errorsStayOut     = "ICMP errors stay out"
	neighboursStayOut = "neighbour discovery stays out"
)

func packetWeaknesses() []Mutation {
	return []Mutation{
		{Name: errorsStayOut, Steps: []Step{{Chain: "input", Do: "delete", Text: "ct state related"}}},
		{Name: neighboursStayOut, Steps: []Step{{Chain: "input", Do: "delete", Text: "icmpv6 type"}}},
	}
}
