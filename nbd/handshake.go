package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"
)

var (
	errHandshake = errors.New("client broke the handshake's rules")
	errAborted   = errors.New("client ended the negotiation")
	errTransmit  = errors.New("negotiation is complete") // never leaves this file
)

// negotiate runs the fixed newstyle handshake. When it returns nil the handler
// is open and the next bytes are requests. The whole of it has one time limit.
func (c *conn) negotiate() error {
	if err := c.sock.SetDeadline(time.Now().Add(c.srv.cfg.HandshakeTimeout)); err != nil {
		return fmt.Errorf("limit handshake: %w", err)
	}
	if c.revoked.Load() { // the deadline just set may have undone the kick
		return errRevoked
	}
	noZeroes, err := c.greet()
	if err != nil {
		return err
	}
	for range optionsMax {
		err := c.negotiateOption(noZeroes)
		if errors.Is(err, errTransmit) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: more than %d options", errHandshake, optionsMax)
}

// greet exchanges the flags. A flag we did not offer ends the connection, as
// the specification demands.
func (c *conn) greet() (noZeroes bool, err error) {
	b := make([]byte, 0, greetingLen)
	b = binary.BigEndian.AppendUint64(b, magicGreeting)
	b = binary.BigEndian.AppendUint64(b, magicOption)
	b = binary.BigEndian.AppendUint16(b, flagFixedNewstyle|flagNoZeroes)
	if err := c.send(b); err != nil {
		return false, err
	}
	reply, err := c.in.peek(4)
	if err != nil {
		return false, fmt.Errorf("read client flags: %w", err)
	}
	flags := binary.BigEndian.Uint32(reply)
	c.in.skip(4)
	if flags&^(clientFixedNewstyle|clientNoZeroes) != 0 {
		return false, fmt.Errorf("%w: client flags %#x", errHandshake, flags)
	}
	return flags&clientNoZeroes != 0, nil
}

// negotiateOption reads one option and answers it.
func (c *conn) negotiateOption(noZeroes bool) error {
	b, err := c.in.peek(optionHeaderLen)
	if err != nil {
		return fmt.Errorf("read option: %w", err)
	}
	h := parseOptionHeader(b)
	c.in.skip(optionHeaderLen)
	if h.magic != magicOption {
		return fmt.Errorf("%w: option magic %#x", errHandshake, h.magic)
	}
	if h.length > optionBytesMax {
		return fmt.Errorf("%w: option %d of %d bytes", errHandshake, h.option, h.length)
	}
	data, err := c.in.peek(int(h.length))
	if err != nil {
		return fmt.Errorf("read option data: %w", unexpected(err))
	}
	c.in.skip(len(data))
	return c.answerOption(h.option, data, noZeroes)
}

func (c *conn) answerOption(o option, data []byte, noZeroes bool) error {
	switch {
	case o == optAbort:
		_ = c.reply(o, repAck, nil) // the client need not wait for it
		return errAborted
	case o == optExportName:
		return c.exportName(data, noZeroes)
	case c.revoked.Load():
		return c.refuseOption(o, repErrShutdown, "the server is shutting down")
	case o == optList:
		return c.list(data)
	case o == optGo, o == optInfo:
		return c.selectExport(o, data)
	}
	return c.refuseOption(o, repErrUnsupported, "this server does not know the option")
}

func (c *conn) list(data []byte) error {
	if len(data) != 0 {
		return c.refuseOption(optList, repErrInvalid, "a list request carries no data")
	}
	var b []byte
	for _, e := range c.srv.exportList() {
		b = appendOptionReply(b, optList, repServer, appendServerReply(nil, e.Name(), e.Description()))
	}
	return c.send(appendOptionReply(b, optList, repAck, nil))
}

// selectExport answers NBD_OPT_INFO and NBD_OPT_GO. INFO describes the export
// without opening it, so it also works where GO would be refused.
func (c *conn) selectExport(o option, data []byte) error {
	sel, err := parseSelection(data)
	if err != nil {
		return c.refuseOption(o, repErrInvalid, "the lengths in the request do not add up")
	}
	e, ok := c.srv.lookup(sel.name)
	if !ok {
		return c.refuseOption(o, repErrUnknown, fmt.Sprintf("there is no export named %q", sel.name))
	}
	if o == optGo {
		if err := c.open(e); errors.Is(err, errRevoked) {
			return c.refuseOption(o, repErrShutdown, "the server is shutting down")
		} else if err != nil {
			return c.refuseOption(o, repErrPolicy, err.Error())
		}
	}
	err = c.send(c.describe(o, e, sel))
	switch {
	case o == optInfo:
		return err
	case err != nil:
		c.abandon()
		return err
	}
	return errTransmit
}

// describe builds the replies to a selection. The block sizes are always told:
// a client that does not ask needs them no less.
func (c *conn) describe(o option, e Export, sel selection) []byte {
	size, attributes := offeredSize(e), e.Attributes()
	if o == optGo {
		size, attributes.ReadOnly = c.size, c.readOnly
	}
	b := appendOptionReply(nil, o, repInfo, appendExportInfo(nil, size, attributes.transmissionFlags()))
	b = appendOptionReply(b, o, repInfo, appendBlockSizeInfo(nil))
	if slices.Contains(sel.infos, infoName) {
		b = appendOptionReply(b, o, repInfo, appendTextInfo(nil, infoName, e.Name()))
	}
	if text := e.Description(); text != "" && slices.Contains(sel.infos, infoDescription) {
		b = appendOptionReply(b, o, repInfo, appendTextInfo(nil, infoDescription, text))
	}
	return appendOptionReply(b, o, repAck, nil)
}

// exportName answers the oldest option, which knows no errors: what it cannot
// have ends the connection.
func (c *conn) exportName(data []byte, noZeroes bool) error {
	if !validName(data) {
		return fmt.Errorf("%w: malformed export name", errHandshake)
	}
	e, ok := c.srv.lookup(string(data))
	if !ok {
		return fmt.Errorf("%w: no export named %q", errHandshake, data)
	}
	if err := c.open(e); err != nil {
		return fmt.Errorf("open export %q: %w", e.Name(), err)
	}
	attributes := e.Attributes()
	attributes.ReadOnly = c.readOnly
	b := appendExportInfo(nil, c.size, attributes.transmissionFlags())[2:] // same fields, no type
	if !noZeroes {
		b = append(b, make([]byte, exportZeroesLen)...)
	}
	if err := c.send(b); err != nil {
		c.abandon()
		return err
	}
	return errTransmit
}

// open opens e for this connection. From before the handler exists until after
// its Close the connection counts for [Server.Disconnect].
func (c *conn) open(e Export) error {
	if !c.srv.reserve(c, e.Name()) {
		return errRevoked
	}
	c.info.Export = e.Name()
	h, err := e.Open(c.info)
	if err != nil {
		c.srv.released(c)
		return err
	}
	c.handler, c.size, c.readOnly = h, offeredSize(e), e.Attributes().ReadOnly
	if !c.srv.opened(c) { // withdrawn while it was being opened
		c.abandon()
		return errRevoked
	}
	return nil
}

// abandon closes a handler that served nothing.
func (c *conn) abandon() {
	c.handler.Close()
	c.handler = nil
	c.srv.released(c)
}

// offeredSize is the export's size in whole blocks.
func offeredSize(e Export) uint64 { return e.Size() / BlockSizeMin * BlockSizeMin }

func (c *conn) refuseOption(o option, t replyType, text string) error {
	return c.reply(o, t, []byte(text[:min(len(text), NameBytesMax)]))
}

func (c *conn) reply(o option, t replyType, data []byte) error {
	return c.send(appendOptionReply(nil, o, t, data))
}

func (c *conn) send(b []byte) error {
	if _, err := c.sock.Write(b); err != nil {
		return fmt.Errorf("send handshake: %w", err)
	}
	return nil
}
