package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"
)

// replyBytesMax bounds the option replies a client accepts.
const replyBytesMax = 64 << 10

// repliesMax bounds how many replies a server may give to one option.
const repliesMax = 4096

// Errors a server gives while an export is selected; see OptionError.
var (
	ErrPolicy        = errors.New("the server's policy forbids it")
	ErrUnknownExport = errors.New("the server has no such export")
	ErrUnsupported   = errors.New("the server does not support it")
)

// ErrProtocol means that the other side sent what the protocol does not allow.
var ErrProtocol = errors.New("nbd protocol violation")

// OptionError is a server's refusal of a negotiation option.
type OptionError struct {
	Option  uint32 // the option's number
	Reply   uint32 // the reply type; bit 31 is set
	Message string // the server's words, possibly none
}

// Error quotes the server.
func (e *OptionError) Error() string {
	text := fmt.Sprintf("option %d refused with error %d", e.Option, e.Reply&^uint32(repError))
	if kind := e.Unwrap(); kind != nil {
		text = kind.Error()
	}
	if e.Message != "" {
		text += ": " + e.Message
	}
	return text
}

// Unwrap is ErrPolicy, ErrUnknownExport, ErrUnsupported, ESHUTDOWN or nil.
func (e *OptionError) Unwrap() error {
	switch replyType(e.Reply) {
	case repErrPolicy:
		return ErrPolicy
	case repErrUnknown:
		return ErrUnknownExport
	case repErrUnsupported:
		return ErrUnsupported
	case repErrShutdown:
		return ESHUTDOWN
	}
	return nil
}

// ExportInfo is what a server tells of an export.
type ExportInfo struct {
	Name        string
	Description string
	Size        uint64 // bytes
	Flags       TransmissionFlags
	// Block sizes in bytes; zero when the server named none.
	BlockSizeMin, BlockSizePreferred, BlockSizeMax uint32
}

// List asks the server of uri for its exports: names and descriptions.
func List(ctx context.Context, uri string) (exports []ExportInfo, err error) {
	t, err := parseURI(uri)
	if err != nil {
		return nil, err
	}
	n, err := connect(ctx, t)
	if err != nil {
		return nil, fmt.Errorf("list exports: %w", err)
	}
	defer n.close()
	if err := n.option(optList, nil, func(r optionReply) error {
		e, err := parseServerReply(r)
		exports = append(exports, e)
		return err
	}); err != nil {
		return nil, fmt.Errorf("list exports: %w", n.because(err))
	}
	_ = n.option(optAbort, nil, nil) // politeness; the list is complete
	return exports, nil
}

func parseServerReply(r optionReply) (ExportInfo, error) {
	if r.kind != repServer || len(r.data) < 4 {
		return ExportInfo{}, fmt.Errorf("%w: reply of type %d to a list request", ErrProtocol, r.kind)
	}
	n := uint64(binary.BigEndian.Uint32(r.data))
	if n > uint64(len(r.data)-4) {
		return ExportInfo{}, fmt.Errorf("%w: export name longer than its message", ErrProtocol)
	}
	return ExportInfo{Name: string(r.data[4 : 4+n]), Description: string(r.data[4+n:])}, nil
}

// negotiation is the client's side of a handshake.
type negotiation struct {
	ctx      context.Context
	sock     socket
	in       *inbox
	stop     func() bool // ends the context's hold on the socket
	noZeroes bool
}

// connect dials and exchanges flags.
func connect(ctx context.Context, t target) (*negotiation, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, t.network, t.address)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	sock, err := asSocket(nc)
	if err != nil {
		_ = nc.Close()
		return nil, err
	}
	n := &negotiation{ctx: ctx, sock: sock, in: newInbox(sock)}
	n.stop = context.AfterFunc(ctx, func() { _ = sock.SetDeadline(time.Unix(1, 0)) })
	if err := n.greet(); err != nil {
		n.close()
		return nil, n.because(err)
	}
	return n, nil
}

func (n *negotiation) close() {
	n.stop()
	_ = n.sock.Close()
}

// because prefers the context's reason over the timeout it caused.
func (n *negotiation) because(err error) error {
	if cause := context.Cause(n.ctx); cause != nil {
		return cause
	}
	return err
}

func (n *negotiation) greet() error {
	b, err := n.in.peek(greetingLen)
	if err != nil {
		return fmt.Errorf("read greeting: %w", unexpected(err))
	}
	if binary.BigEndian.Uint64(b) != magicGreeting || binary.BigEndian.Uint64(b[8:]) != magicOption {
		return fmt.Errorf("%w: not an nbd server of the newstyle protocol", ErrProtocol)
	}
	offered := binary.BigEndian.Uint16(b[16:])
	n.in.skip(greetingLen)
	if offered&flagFixedNewstyle == 0 {
		return fmt.Errorf("%w: server does not speak fixed newstyle", ErrProtocol)
	}
	n.noZeroes = offered&flagNoZeroes != 0
	flags := clientFixedNewstyle
	if n.noZeroes {
		flags |= clientNoZeroes
	}
	return n.send(binary.BigEndian.AppendUint32(nil, flags))
}

func (n *negotiation) send(b []byte) error {
	if _, err := n.sock.Write(b); err != nil {
		return fmt.Errorf("send handshake: %w", err)
	}
	return nil
}

// optionReply is one reply to an option.
type optionReply struct {
	kind replyType
	data []byte // valid until the next reply is read
}

// option sends an option and gives its replies to each, until the final one.
func (n *negotiation) option(o option, data []byte, each func(optionReply) error) error {
	if err := n.send(appendOption(nil, o, data)); err != nil {
		return err
	}
	for range repliesMax {
		r, err := n.readReply(o)
		switch {
		case err != nil:
			return err
		case r.kind == repAck:
			return nil
		case r.kind&repError != 0:
			return &OptionError{Option: uint32(o), Reply: uint32(r.kind), Message: string(r.data)}
		case each == nil:
			return fmt.Errorf("%w: unexpected reply of type %d", ErrProtocol, r.kind)
		}
		if err := each(r); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: more than %d replies to one option", ErrProtocol, repliesMax)
}

func (n *negotiation) readReply(o option) (optionReply, error) {
	b, err := n.in.peek(optionReplyLen)
	if err != nil {
		return optionReply{}, fmt.Errorf("read option reply: %w", unexpected(err))
	}
	magic, to := binary.BigEndian.Uint64(b), option(binary.BigEndian.Uint32(b[8:]))
	kind, length := replyType(binary.BigEndian.Uint32(b[12:])), binary.BigEndian.Uint32(b[16:])
	n.in.skip(optionReplyLen)
	if magic != magicReply || to != o || length > replyBytesMax {
		return optionReply{}, fmt.Errorf("%w: malformed option reply", ErrProtocol)
	}
	data, err := n.in.peek(int(length))
	if err != nil {
		return optionReply{}, fmt.Errorf("read option reply: %w", unexpected(err))
	}
	n.in.skip(len(data))
	return optionReply{kind: kind, data: data}, nil
}

// selectExport enters transmission, by GO or by the older option where GO is
// not known.
func (n *negotiation) selectExport(name string) (ExportInfo, error) {
	info := ExportInfo{Name: name}
	sel := selection{name: name, infos: []uint16{infoDescription, infoBlockSize}}
	err := n.option(optGo, sel.append(nil), info.merge)
	if errors.Is(err, ErrUnsupported) {
		return n.exportName(name)
	}
	if err == nil && info.Flags&FlagHasFlags == 0 {
		err = fmt.Errorf("%w: the server did not describe the export", ErrProtocol)
	}
	return info, err
}

func (n *negotiation) exportName(name string) (ExportInfo, error) {
	if err := n.send(appendOption(nil, optExportName, []byte(name))); err != nil {
		return ExportInfo{}, err
	}
	length := 10
	if !n.noZeroes {
		length += exportZeroesLen
	}
	b, err := n.in.peek(length)
	if err != nil {
		return ExportInfo{}, fmt.Errorf("read export information: %w", unexpected(err))
	}
	info := ExportInfo{
		Name:  name,
		Size:  binary.BigEndian.Uint64(b),
		Flags: TransmissionFlags(binary.BigEndian.Uint16(b[8:])),
	}
	n.in.skip(length)
	return info, nil
}

// merge adds what one NBD_REP_INFO tells. Unknown information is ignored.
func (e *ExportInfo) merge(r optionReply) error {
	if r.kind != repInfo || len(r.data) < 2 {
		return fmt.Errorf("%w: reply of type %d while selecting an export", ErrProtocol, r.kind)
	}
	body := r.data[2:]
	switch kind := binary.BigEndian.Uint16(r.data); {
	case kind == infoExport && len(body) == 10:
		e.Size = binary.BigEndian.Uint64(body)
		e.Flags = TransmissionFlags(binary.BigEndian.Uint16(body[8:]))
	case kind == infoBlockSize && len(body) == 12:
		e.BlockSizeMin = binary.BigEndian.Uint32(body)
		e.BlockSizePreferred = binary.BigEndian.Uint32(body[4:])
		e.BlockSizeMax = binary.BigEndian.Uint32(body[8:])
	case kind == infoDescription:
		e.Description = string(body)
	case kind == infoExport, kind == infoBlockSize:
		return fmt.Errorf("%w: export information of %d bytes", ErrProtocol, len(body))
	}
	return nil
}
