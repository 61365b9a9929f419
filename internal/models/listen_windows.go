package models

import (
	"fmt"
	"math/rand/v2"
	"net"
)

// listenAnywhere listens at port 80 of a free address of loopback: an Ollama there makes a folder of the name, which
// cannot have a colon in it.
func listenAnywhere() (l net.Listener, err error) {
	for range 16 {
		l, err = net.Listen("tcp", fmt.Sprintf("127.%d.%d.%d:80", 1+rand.N(254), rand.N(256), 1+rand.N(254)))
		if err == nil {
			break
		}
	}
	return l, err
}
