package exchange

import (
	"bufio"
	"context"
	"io"
	"time"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/models/blob"
)

// fetchList asks a node for the list of a blob's pieces. One that sends another than the agreed one does not keep to the protocol.
func (x *Exchange) fetchList(ctx context.Context, id cluster.NodeID, w Want) (*blob.List, error) {
	conn, err := x.dial(ctx, id, w)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	conn.SetDeadline(time.Now().Add(x.config.Stall))
	conn.Write(head(nil, kindList, 0))
	allowance := x.allow()
	encoded, err := readList(bufio.NewReader(conn), func(n int) error {
		err := allowance.wait(ctx, x.in, n)
		conn.SetReadDeadline(time.Now().Add(x.config.Stall)) // for this part and the head of the next
		return err
	})
	if err != nil {
		return nil, err
	}
	l, err := blob.Decode(encoded, w.Root)
	if err != nil {
		return nil, nonsense("%v", err)
	}
	return l, nil
}

// readList reads frames until the end of a list. wait is called before each part of it.
func readList(r io.Reader, wait func(n int) error) (encoded []byte, err error) {
	for {
		kind, n, err := readHead(r)
		if err != nil {
			return nil, err
		}
		switch kind {
		case kindNo:
			return nil, readNo(r, n)
		case kindList:
			if n == 0 {
				return encoded, nil
			}
			if len(encoded)+n > blob.MaxEncoded {
				return nil, nonsense("list of more than %d bytes", blob.MaxEncoded)
			}
			if err := wait(n); err != nil {
				return nil, err
			}
		case kindHave, kindGot:
		default:
			return nil, nonsense("frame of kind %d instead of the list", kind)
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(r, b); err != nil {
			return nil, err
		}
		if kind == kindList {
			encoded = append(encoded, b...)
		}
	}
}
