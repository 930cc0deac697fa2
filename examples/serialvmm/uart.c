/* The serial port of serialvmm: an 8250 as Linux drives it. */
#include "serialvmm.h"

#include <linux/serial_reg.h>
#include <string.h>
#include <unistd.h>

/* The line is up while an interrupt that the guest has enabled waits. */
static void update(struct uart *uart)
{
	struct uart_state *s = &uart->state;
	bool up = (s->ier & UART_IER_RDI && s->queued) || (s->ier & UART_IER_THRI && s->sent);

	if (up != uart->up)
		irq_line(UART_IRQ, up);
	uart->up = up;
}

void uart_init(struct uart *uart)
{
	memset(uart, 0, sizeof(*uart));
	pthread_mutex_init(&uart->lock, NULL);
}

void uart_arrived(struct uart *uart)
{
	pthread_mutex_lock(&uart->lock);
	uart->up = false;
	irq_line(UART_IRQ, false);
	update(uart);
	pthread_mutex_unlock(&uart->lock);
}

void uart_receive(struct uart *uart, uint8_t byte)
{
	struct uart_state *s = &uart->state;

	pthread_mutex_lock(&uart->lock);
	if (s->queued < sizeof(s->queue))
		s->queue[s->queued++] = byte;
	update(uart);
	pthread_mutex_unlock(&uart->lock);
}

static uint8_t take(struct uart_state *s)
{
	uint8_t byte = s->queue[0];

	if (s->queued == 0)
		return 0;
	memmove(s->queue, s->queue + 1, --s->queued);
	return byte;
}

uint8_t uart_read(struct uart *uart, unsigned offset)
{
	struct uart_state *s = &uart->state;
	bool latch = s->lcr & UART_LCR_DLAB;
	uint8_t value = 0;

	pthread_mutex_lock(&uart->lock);
	switch (offset) {
	case UART_RX:
		value = latch ? s->dll : take(s);
		break;
	case UART_IER:
		value = latch ? s->dlm : s->ier;
		break;
	case UART_IIR:
		value = s->fcr & UART_FCR_ENABLE_FIFO ? 0xc0 : 0;
		if (s->ier & UART_IER_RDI && s->queued) {
			value |= UART_IIR_RDI;
		} else if (s->ier & UART_IER_THRI && s->sent) {
			value |= UART_IIR_THRI;
			s->sent = 0;
		} else {
			value |= UART_IIR_NO_INT;
		}
		break;
	case UART_LCR:
		value = s->lcr;
		break;
	case UART_MCR:
		value = s->mcr;
		break;
	case UART_LSR:
		value = UART_LSR_TEMT | UART_LSR_THRE | (s->queued ? UART_LSR_DR : 0);
		break;
	case UART_MSR:
		value = UART_MSR_DCD | UART_MSR_DSR | UART_MSR_CTS;
		break;
	case UART_SCR:
		value = s->scr;
		break;
	}
	update(uart);
	pthread_mutex_unlock(&uart->lock);
	return value;
}

void uart_write(struct uart *uart, unsigned offset, uint8_t value)
{
	struct uart_state *s = &uart->state;
	bool latch = s->lcr & UART_LCR_DLAB;

	pthread_mutex_lock(&uart->lock);
	switch (offset) {
	case UART_TX:
		if (latch) {
			s->dll = value;
			break;
		}
		if (write(STDOUT_FILENO, &value, 1) != 1)
			_exit(1); /* nobody listens any more */
		s->sent = 0;
		update(uart); /* each byte's interrupt is an edge of its own */
		s->sent = 1;
		break;
	case UART_IER:
		if (latch) {
			s->dlm = value;
			break;
		}
		if (value & ~s->ier & UART_IER_THRI)
			s->sent = 1;
		s->ier = value & 0xf;
		break;
	case UART_FCR:
		s->fcr = value;
		if (value & UART_FCR_CLEAR_RCVR)
			s->queued = 0;
		break;
	case UART_LCR:
		s->lcr = value;
		break;
	case UART_MCR:
		s->mcr = value;
		break;
	case UART_SCR:
		s->scr = value;
		break;
	}
	update(uart);
	pthread_mutex_unlock(&uart->lock);
}
