// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

/// @title Who serves models, where, with which key, and what they have at stake.
/// @notice An operator registers itself, stakes the token and is then found by agents. It moves its own stake only, and after a
/// delay; nobody else can move it, change it or pause it: there is no owner and no upgrade path. (Slashing is a later contract.)
/// An operator is *listed* while its stake is at least `minimumStake`, and *active* while it is listed and not paused. The list is
/// therefore as long as stakes make it: registering without a stake costs readers nothing.
/// @dev Assumes of the token: it moves exactly the stated amount, takes no fee, and calls nobody back (QuorateToken does).
/// What an operator states (endpoint, names, hashes) is its own claim; a reader treats it as hostile text of bounded length.
interface IOperatorRegistry {
    /// @notice A model that an operator serves.
    struct Model {
        /// What a request names, 1 to 64 bytes.
        string name;
        /// Hash of the manifest of its files (weights, tokenizer, chat template).
        bytes32 manifestHash;
    }

    /// @notice What is known of an operator. Amounts are in units of 1e-18 token.
    struct Operator {
        address account;
        /// Signs the receipts of its answers.
        address key;
        string endpoint;
        Model[] models;
        uint256 stake;
        /// No longer counts as stake; can be withdrawn from `withdrawableAt` on (seconds since 1970).
        uint256 unbonding;
        uint64 withdrawableAt;
        bool paused;
    }

    event Registered(address indexed operator, address indexed key, string endpoint);
    event Updated(address indexed operator, address indexed key, string endpoint);
    event Staked(address indexed operator, uint256 amount, uint256 stake);
    event UnbondingStarted(address indexed operator, uint256 amount, uint256 stake, uint64 withdrawableAt);
    event Withdrawn(address indexed operator, uint256 amount);
    event Paused(address indexed operator);
    event Unpaused(address indexed operator);

    error AlreadyRegistered(address operator);
    error NotRegistered(address operator);
    /// @notice The key signs, or has signed, for another operator.
    error KeyTaken(address key, address operator);
    error KeyIsZero();
    error EndpointLength(uint256 length, uint256 longest);
    error ModelCount(uint256 count, uint256 most);
    error ModelNameLength(string name, uint256 longest);
    error ModelHashIsZero(string name);
    error AmountIsZero();
    error StakeTooSmall(uint256 stake, uint256 amount);
    error NothingToWithdraw(address operator);
    error StillUnbonding(uint64 withdrawableAt, uint256 now_);
    error AlreadyPaused(address operator);
    error NotPaused(address operator);
    error MinimumStakeIsZero();
    error UnbondingDelayIsZero();

    /// @notice Enters the caller as an operator, without a stake.
    /// @param key signs its receipts. A key belongs to its first operator for ever, also after `update` to another key, so that an
    /// old receipt always points to who signed it. Possession is not proved here: a stranger's key is of no use to the caller.
    /// @param endpoint where its API answers, 1 to 256 bytes.
    /// @param models what it serves, 1 to 16.
    function register(address key, string calldata endpoint, Model[] calldata models) external;

    /// @notice Replaces the caller's key, endpoint and models.
    function update(address key, string calldata endpoint, Model[] calldata models) external;

    /// @notice Adds to the caller's stake; the token must have been approved for this contract.
    function stake(uint256 amount) external;

    /// @notice Takes `amount` out of the caller's stake; it can be withdrawn after `unbondingDelay`. A second call adds to what is
    /// unbonding and starts the delay of all of it anew.
    function startUnbonding(uint256 amount) external;

    /// @notice Sends the caller everything that has finished unbonding.
    function withdraw() external;

    /// @notice The caller stops serving for a while; its stake stays.
    function pause() external;

    function unpause() external;

    /// @notice Stake from which an operator is listed, in units of 1e-18 token.
    function minimumStake() external view returns (uint256);

    /// @notice Seconds between `startUnbonding` and `withdraw`.
    function unbondingDelay() external view returns (uint64);

    /// @notice True while the operator is registered, staked and not paused.
    function isActive(address operator) external view returns (bool);

    /// @notice The operator that a key signs, or has signed, for; zero if none.
    function accountOf(address key) external view returns (address);

    /// @notice What is known of one operator; reverts with NotRegistered.
    function operatorOf(address operator) external view returns (Operator memory);

    /// @notice How many operators are listed.
    function operatorCount() external view returns (uint256);

    /// @notice At most `limit` listed operators from position `offset` on. Positions change when an operator leaves: read all
    /// pages at one block.
    function operators(uint256 offset, uint256 limit) external view returns (Operator[] memory);
}
