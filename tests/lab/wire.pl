#!/usr/bin/perl
# A wire between a client and a server of a lab host: a TCP relay with a delay and a rate, for every connection together,
# that counts. Owns the bytes on their way and nothing else. Perl, because every Debian root has it.
#
#   wire.pl LISTEN:PORT SERVER:PORT DELAY_MS KBYTE_PER_S COUNTS
#
# The delay is one way's. COUNTS is a file with two numbers, the bytes to the server and those from it. It is there before
# anybody can connect, and nothing arrives that is not counted in it.
use strict;
use warnings;
use IO::Select;
use IO::Socket::INET;
use Socket qw(SOL_SOCKET SO_RCVBUF);
use Time::HiRes qw(time);

die "usage: wire.pl LISTEN:PORT SERVER:PORT DELAY_MS KBYTE_PER_S COUNTS\n" unless @ARGV == 5;
my ($listen, $server, $delay, $rate, $counts) = @ARGV;
$delay /= 1000;
$rate *= 1000;
# What may wait at the narrow end: the buffer of a decent router.
my $queue = 0.1;
$SIG{PIPE} = 'IGNORE';
# For each socket: where its bytes go, in which direction, and what is on its way: [due, bytes].
my (%peer, %way, %queued, %ends);
my @free_at = (0, 0);
my @count = (0, 0);
my $written = '';

sub keep_counts {
    my $text = "$count[0] $count[1]\n";
    return if $text eq $written;
    open(my $file, '>', "$counts.new") or die "$counts: $!\n";
    print $file $text;
    close $file;
    rename "$counts.new", $counts or die "$counts: $!\n";
    $written = $text;
}

sub forget {
    my ($socket) = @_;
    delete $_->{$socket} for \%peer, \%way, \%queued, \%ends;
    close $socket;
}

keep_counts();
my $listener = IO::Socket::INET->new(LocalAddr => $listen, Listen => 128, ReuseAddr => 1) or die "listen on $listen: $!\n";
# What the kernel would take on this machine is not what a sender has in flight on such a wire.
setsockopt($listener, SOL_SOCKET, SO_RCVBUF, 65536);
my %open;
while (1) {
    my $now = time;
    my $reading = IO::Select->new($listener);
    my $next = $now + 1;
    for my $socket (values %open) {
        my $way = $way{$socket};
        # What comes faster than it leaves is left with whoever sends it.
        if ($free_at[$way] - $now > $queue) {
            my $room = $free_at[$way] - $queue;
            $next = $room if $room < $next;
        } elsif (!$ends{$socket}) {
            $reading->add($socket);
        }
        my $first = $queued{$socket}[0];
        $next = $first->[0] if $first && $first->[0] < $next;
    }
    my $wait = $next - $now;
    for my $socket ($reading->can_read($wait > 0 ? $wait : 0)) {
        if ($socket == $listener) {
            my $client = $listener->accept or next;
            my $far = IO::Socket::INET->new(PeerAddr => $server) or do { close $client; next };
            for ($client, $far) { setsockopt($_, SOL_SOCKET, SO_RCVBUF, 65536); setsockopt($_, 6, 1, 1); $_->autoflush(1); $open{$_} = $_; $queued{$_} = [] }
            @peer{$client, $far} = ($far, $client);
            @way{$client, $far} = (0, 1);
            next;
        }
        my $way = $way{$socket};
        my $got = sysread($socket, my $bytes, 16384);
        $now = time;
        $free_at[$way] = $now if $free_at[$way] < $now;
        if ($got) {
            $free_at[$way] += $got / $rate;
            $count[$way] += $got;
        } else {
            $ends{$socket} = 1;
            $bytes = undef;
        }
        push @{ $queued{$socket} }, [$free_at[$way] + $delay, $bytes];
    }
    keep_counts();
    $now = time;
    # A list of its own: the hash changes meanwhile.
    my @all = values %open;
    for my $socket (@all) {
        my $waiting = $queued{$socket} or next;
        while (@$waiting && $waiting->[0][0] <= $now) {
            my $bytes = (shift @$waiting)->[1];
            my $to = $peer{$socket};
            if (!defined $bytes) {
                shutdown($to, 1);
                next;
            }
            # The other end reads; where it does not for long, everybody waits, as on a wire that is full.
            while (length $bytes) {
                my $sent = syswrite($to, $bytes);
                if (!defined $sent) { $ends{$socket} = 1; last }
                substr($bytes, 0, $sent, '');
            }
        }
        my $to = $peer{$socket};
        if ($ends{$socket} && $ends{$to} && !@$waiting && !@{ $queued{$to} }) {
            for ($socket, $to) { delete $open{$_} }
            forget($_) for $socket, $to;
        }
    }
}
