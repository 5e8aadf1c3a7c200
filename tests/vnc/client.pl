#!/usr/bin/perl
# A VNC client that is not ours (Net::VNC), for tests/tests/screen.rs: types lines, moves the pointer, and saves what it sees.
# client.pl HOST PORT PASSWORD X Y FILE.png LINE…
use strict;
use warnings;
use Net::VNC;

my ($host, $port, $password, $x, $y, $file, @lines) = @ARGV;
my $vnc = Net::VNC->new({ hostname => $host, port => $port, password => $password });
$vnc->depth(24);
$vnc->login;
for my $line (@lines) {
    $vnc->send_key_event(ord $_) for split //, $line;
    $vnc->send_key_event(0xff0d);
}
$vnc->send_pointer_event(0, $x, $y);
# What was typed takes its time to be seen.
sleep 2;
$vnc->capture->save($file);
print $vnc->name, ' ', $vnc->width, 'x', $vnc->height, "\n";
