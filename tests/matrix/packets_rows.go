package main

import "slices"

// packetRows are about what comes over the wire that is not plain TCP or UDP to the pod's address.
func packetRows() []Row {
	return slices.Concat(protocolRows(), loopbackRows(), helperRows(), controlMessageRows(), limitRows())
}

// closedAndMesh is a row twice: closed as after boot, and in the mesh state.
func closedAndMesh(r Row) []Row {
	closed, mesh := r, r
	closed.Name, mesh.Name = r.Name+"-closed", r.Name+"-mesh"
	mesh.Enter = func(l *Lab) {
		l.Raise(namedPorts)
		if r.Enter != nil {
			r.Enter(l)
		}
	}
	return []Row{closed, mesh}
}

func grouped(group string, rows []Row) []Row {
	for i := range rows {
		rows[i].Group = group
		if rows[i].Notices == "" {
			rows[i].Notices = noticesApps
		}
		if rows[i].Control == "" {
			rows[i].Control = "the same packets get an answer once the guard's table is deleted"
		}
		if rows[i].Weakness == "" {
			rows[i].Weakness = everythingComesIn
		}
	}
	return rows
}
