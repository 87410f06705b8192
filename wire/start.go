package wire

// StartSize is the size of a start frame.
const StartSize = 152

// Opening is what the first frame of a connection says, before anybody is
// authenticated: which resource is meant, and whether TLS is to follow.
type Opening struct {
	Resource string
	TLS      bool // the frame is a start: nothing but TLS comes after it
}

// AppendStart appends the frame that announces TLS. The dialler of a link with
// TLS sends it first; the acceptor answers with the same frame, or with a
// refusal. Its layout never changes:
//
//	offset size
//	     0    8  prefix
//	     8    1  length of the resource name
//	     9    7  room; sent as zero, ignored
//	    16  128  resource name, zero-padded
//	   144    8  xxhash64 of bytes 0 to 143
//
// Nothing in it is authenticated. It only finds the resource, so that a node
// that has no TLS for it can say so; the hello inside TLS names it again.
func AppendStart(dst []byte, resource string) ([]byte, error) {
	if err := checkResourceName(resource); err != nil {
		return dst, err
	}
	var frame [StartSize]byte
	appendPrefix(frame[:0], frameStart, 0)
	frame[8] = byte(len(resource))
	copy(frame[16:], resource)
	return append(dst, sealFrame(frame[:StartSize-sumSize])...), nil
}

// ParseOpening decodes the frame that opens a connection, so that a listener
// shared by several resources can find the one that is meant. The error wraps
// ErrHandshake.
func ParseOpening(frame []byte) (Opening, error) {
	t, err := openFrame(frame)
	if err != nil {
		return Opening{}, err
	}
	switch t {
	case frameStart:
		return parseStart(frame)
	case frameHello:
		hello, err := ParseHello(frame)
		return Opening{Resource: hello.Resource}, err
	}
	return Opening{}, badHandshake("not an opening")
}

// ParseStartAnswer decodes what an acceptor answers to a start: nil means that
// TLS may begin. A refusal comes as a *RefusedError that is Unproven; other
// errors wrap ErrHandshake.
func ParseStartAnswer(frame []byte, resource string) error {
	t, err := openFrame(frame)
	if err != nil {
		return err
	}
	if t == frameRefusal {
		return &RefusedError{Reason: Refusal(frame[5]), ByPeer: true, Unproven: true}
	}
	if t != frameStart {
		return badHandshake("not an answer to a start")
	}
	o, err := parseStart(frame)
	if err == nil && o.Resource != resource {
		err = badHandshake("start of another resource")
	}
	return err
}

// parseStart reads a start frame of the right size and checksum.
func parseStart(frame []byte) (Opening, error) {
	n := int(frame[8])
	if n > ResourceNameMax {
		return Opening{}, badHandshake("length of the resource name")
	}
	name := string(frame[16:][:n])
	return Opening{Resource: name, TLS: true}, checkResourceName(name)
}
