package nbd

import (
	"encoding/binary"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// Numbers of the NBD protocol (NetworkBlockDevice/nbd, doc/proto.md). Those
// that go-nbd defines are taken from there.
const (
	magicGreeting = protocol.NEGOTIATION_MAGIC_OLDSTYLE
	magicOption   = protocol.NEGOTIATION_MAGIC_OPTION
	magicReply    = protocol.NEGOTIATION_MAGIC_REPLY

	flagFixedNewstyle = protocol.NEGOTIATION_HANDSHAKE_FLAG_FIXED_NEWSTYLE
	flagNoZeroes      = uint16(1 << 1)

	clientFixedNewstyle = uint32(1 << 0)
	clientNoZeroes      = uint32(1 << 1)

	magicRequest     = protocol.TRANSMISSION_MAGIC_REQUEST
	magicSimpleReply = protocol.TRANSMISSION_MAGIC_REPLY
)

// Lengths in bytes of the fixed parts.
const (
	greetingLen     = 18
	optionHeaderLen = 16
	optionReplyLen  = 20
	requestLen      = 28
	simpleReplyLen  = 16
	exportZeroesLen = 124
)

// option is a negotiation option's number.
type option uint32

const (
	optExportName = option(1)
	optAbort      = option(protocol.NEGOTIATION_ID_OPTION_ABORT)
	optList       = option(protocol.NEGOTIATION_ID_OPTION_LIST)
	optInfo       = option(protocol.NEGOTIATION_ID_OPTION_INFO)
	optGo         = option(protocol.NEGOTIATION_ID_OPTION_GO)
)

// replyType is the type of an option reply; bit 31 marks errors.
type replyType uint32

const (
	repError = replyType(1 << 31)

	repAck    = replyType(protocol.NEGOTIATION_TYPE_REPLY_ACK)
	repServer = replyType(protocol.NEGOTIATION_TYPE_REPLY_SERVER)
	repInfo   = replyType(protocol.NEGOTIATION_TYPE_REPLY_INFO)

	repErrUnsupported = replyType(protocol.NEGOTIATION_TYPE_REPLY_ERR_UNSUPPORTED)
	repErrPolicy      = repError | 2
	repErrInvalid     = repError | 3
	repErrUnknown     = replyType(protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN)
	repErrShutdown    = repError | 7
)

const (
	infoExport      = protocol.NEGOTIATION_TYPE_INFO_EXPORT
	infoName        = protocol.NEGOTIATION_TYPE_INFO_NAME
	infoDescription = protocol.NEGOTIATION_TYPE_INFO_DESCRIPTION
	infoBlockSize   = protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE
)

// TransmissionFlags tell a client what an export can do.
type TransmissionFlags uint16

// The flags this package knows.
const (
	FlagHasFlags        = TransmissionFlags(protocol.NEGOTIATION_REPLY_FLAGS_HAS_FLAGS)
	FlagReadOnly        = TransmissionFlags(1 << 1)
	FlagSendFlush       = TransmissionFlags(1 << 2)
	FlagSendFUA         = TransmissionFlags(1 << 3)
	FlagRotational      = TransmissionFlags(1 << 4)
	FlagSendTrim        = TransmissionFlags(1 << 5)
	FlagSendWriteZeroes = TransmissionFlags(1 << 6)
	FlagCanMultiConn    = TransmissionFlags(protocol.NEGOTIATION_REPLY_FLAGS_CAN_MULTI_CONN)
)

// transmissionFlags is what we serve: everything that changes data is offered
// with FLUSH and FUA, for a kernel that is not told of FLUSH drops every fsync.
func (a Attributes) transmissionFlags() TransmissionFlags {
	flags := FlagHasFlags | FlagSendFlush | FlagSendFUA
	if a.ReadOnly {
		flags |= FlagReadOnly
	} else {
		flags |= FlagSendTrim | FlagSendWriteZeroes
	}
	if a.MultiConn {
		flags |= FlagCanMultiConn
	}
	if a.Rotational {
		flags |= FlagRotational
	}
	return flags
}

// Command flags of a request.
const (
	cmdFUA    = uint16(1 << 0)
	cmdNoHole = uint16(1 << 1)
)

// requestHeader is the fixed part of a request, decoded.
type requestHeader struct {
	magic  uint32
	flags  uint16
	op     Op
	cookie uint64
	offset uint64
	length uint32
}

func parseRequest(b []byte) requestHeader {
	_ = b[requestLen-1]
	return requestHeader{
		magic:  binary.BigEndian.Uint32(b),
		flags:  binary.BigEndian.Uint16(b[4:]),
		op:     Op(binary.BigEndian.Uint16(b[6:])),
		cookie: binary.BigEndian.Uint64(b[8:]),
		offset: binary.BigEndian.Uint64(b[16:]),
		length: binary.BigEndian.Uint32(b[24:]),
	}
}

func (h requestHeader) put(b []byte) {
	_ = b[requestLen-1]
	binary.BigEndian.PutUint32(b, h.magic)
	binary.BigEndian.PutUint16(b[4:], h.flags)
	binary.BigEndian.PutUint16(b[6:], uint16(h.op))
	binary.BigEndian.PutUint64(b[8:], h.cookie)
	binary.BigEndian.PutUint64(b[16:], h.offset)
	binary.BigEndian.PutUint32(b[24:], h.length)
}

func putSimpleReply(b []byte, errno Errno, cookie uint64) {
	_ = b[simpleReplyLen-1]
	binary.BigEndian.PutUint32(b, magicSimpleReply)
	binary.BigEndian.PutUint32(b[4:], uint32(errno))
	binary.BigEndian.PutUint64(b[8:], cookie)
}

// check decides whether a request may reach the handler of an export of size
// bytes, and with which error it is refused. The order matters where several
// rules are broken: form first, then permission, then bounds.
func (h requestHeader) check(size uint64, readOnly bool) Errno {
	allowed, known := commandFlags(h.op)
	switch {
	case !known, h.flags&^allowed != 0:
		return EINVAL
	case h.op == OpFlush:
		if h.offset != 0 || h.length != 0 {
			return EINVAL
		}
		return 0
	case readOnly && h.op != OpRead:
		return EPERM
	case h.carriesData() && h.length > RequestBytesMax:
		return EINVAL
	case h.offset > size || uint64(h.length) > size-h.offset:
		return pastEnd(h.op)
	case h.op != OpRead && (h.offset%BlockSizeMin != 0 || h.length%BlockSizeMin != 0):
		return EINVAL
	case h.op == OpRead && h.blocks() > RequestBytesMax:
		return EINVAL
	}
	return 0
}

// commandFlags lists the flags each request may carry. FUA is valid on all.
func commandFlags(op Op) (allowed uint16, known bool) {
	switch op {
	case OpRead, OpWrite, OpFlush, OpTrim:
		return cmdFUA, true
	case OpWriteZeroes:
		return cmdFUA | cmdNoHole, true
	}
	return 0, false
}

// pastEnd is the error the specification names for a range beyond the device.
func pastEnd(op Op) Errno {
	if op == OpWrite || op == OpWriteZeroes {
		return ENOSPC
	}
	return EINVAL
}

// carriesData reports whether the request or its reply has a payload.
func (h requestHeader) carriesData() bool { return h.op == OpRead || h.op == OpWrite }

// lead is the distance from the start of the block that holds the offset.
func (h requestHeader) lead() uint64 { return h.offset % BlockSizeMin }

// blocks is the length in bytes of the whole blocks around the range.
func (h requestHeader) blocks() uint64 {
	end := h.lead() + uint64(h.length)
	return (end + BlockSizeMin - 1) / BlockSizeMin * BlockSizeMin
}
