package evidence

// NewSocketIssuer lets tests use sockets of their own: there is one Socket per network namespace.
var NewSocketIssuer = newSocketIssuer
