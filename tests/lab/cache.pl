#!/usr/bin/perl
# A binary cache over HTTP, as an object store is one: what was PUT can be had by GET and HEAD. Says every request.
#
#   cache.pl PORT DIRECTORY
use strict;
use warnings;
use File::Basename qw(dirname);
use File::Path qw(make_path);
use IO::Socket::INET;

my ($port, $directory) = @ARGV;
my $server = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $port, Listen => 64, ReuseAddr => 1)
  or die "listen: $!\n";
$SIG{CHLD} = 'IGNORE';
$| = 1;
while (my $client = $server->accept) {
  next if fork;
  binmode $client;
  while (defined(my $request = <$client>)) {
    my ($method, $path) = $request =~ m{^(GET|HEAD|PUT) /([A-Za-z0-9._/-]+) HTTP/1\.[01]\r\n$} or last;
    last if $path =~ m{\.\.};
    my ($length, $continue) = (0, 0);
    while (defined(my $header = <$client>) ) {
      last if $header eq "\r\n";
      $length = $1 if $header =~ /^content-length:\s*(\d+)/i;
      $continue = 1 if $header =~ /^expect:\s*100-continue/i;
    }
    my ($status, $body, $file) = ('200 OK', '', "$directory/$path");
    if ($method eq 'PUT') {
      print $client "HTTP/1.1 100 Continue\r\n\r\n" if $continue;
      read($client, my $content, $length) == $length or last;
      make_path(dirname($file));
      open(my $out, '>:raw', "$file.$$") or die "$file: $!\n";
      print $out $content;
      close $out;
      rename "$file.$$", $file or die "$file: $!\n";
    } elsif (open(my $in, '<:raw', $file)) {
      local $/;
      $body = <$in>;
    } else {
      $status = '404 Not Found';
    }
    print "$method $path $status\n";
    print $client "HTTP/1.1 $status\r\nContent-Length: " . length($body) . "\r\n\r\n";
    print $client $body if $method eq 'GET';
    $client->flush;
  }
  exit;
}
